package ldapsync

import (
	"bytes"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// captured is a log that tests read.
type captured struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (c *captured) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *captured) logger() logrus.FieldLogger {
	log := logrus.New()
	if c != nil {
		log.SetOutput(c)
		log.SetLevel(logrus.DebugLevel)
		return log
	}
	return quiet()
}

func (c *captured) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func (c *captured) count(what string) int { return strings.Count(c.String(), what) }
