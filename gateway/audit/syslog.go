package audit

import (
	"fmt"
	"strings"
	"time"
)

// Syslog is the line as a message of RFC 5424: facility 10 (security), severity notice, or warning for refusals; the number in
// the registered element meta, the JSON of the line as text.
func (l *Line) Syslog(host string) (string, error) {
	const facility, warning, notice = 10, 4, 5
	severity := notice
	switch l.Event {
	case RequestDenied, RequestFailed, OrderUncertain, RequestRejected, RecoveryRefused:
		severity = warning
	}
	text, err := l.leaf()
	if err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	return fmt.Sprintf("<%d>1 %s %s enrollgate - %s [meta sequenceId=\"%d\"] %s", facility*8+severity, l.Time.Format(time.RFC3339Nano),
		printable(host), printable(string(l.Event)), l.Seq&0x7fffffff, text), nil
}

// printable leaves only what RFC 5424 allows in a header field.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s
}

// JSON is the line as its leaf in the tree: whoever hashes these octets by RFC 6962 gets the tree that checkpoints are about.
func (l *Line) JSON() ([]byte, error) { return l.leaf() }
