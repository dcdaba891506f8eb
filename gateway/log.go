package gateway

import (
	"io"
	"log"
	"os"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/sirupsen/logrus"
)

// NewLogger returns the logger that the configuration asks for; it writes to standard error.
func NewLogger(c config.Log) (*logrus.Logger, error) {
	l := logrus.New()
	l.SetOutput(os.Stderr)
	level, err := logrus.ParseLevel(c.Level)
	if err != nil {
		return nil, err
	}
	l.SetLevel(level)
	if c.Format == "json" {
		l.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		l.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableQuote: true})
	}
	return l, nil
}

// stdLogger lets net/http log through logrus.
func stdLogger(w io.Writer) *log.Logger { return log.New(w, "", 0) }
