package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Client submits checkpoints to one witness, one at a time.
type Client struct {
	HTTP *http.Client
	URL  string // submission prefix
	Key  *Verifier

	last int64 // size that the witness knows, as far as is known
}

// AheadError is a witness that has seen a longer log than there is: the log was put back.
type AheadError struct {
	Witness     string
	Seen, Lines int64
}

func (e *AheadError) Error() string {
	return fmt.Sprintf("the witness %s has seen %d lines of the audit log, and it has %d: it was put back to an earlier state", e.Witness, e.Seen, e.Lines)
}

// Prover makes the proof that the log of the checkpoint begins with its first old lines.
type Prover func(old int64) (tlog.TreeProof, error)

// Submit returns the witness's signature lines for a checkpoint. An *AheadError is an alarm; so is an error that says that the
// log is another one. Others pass.
func (c *Client) Submit(ctx context.Context, checkpoint *audit.Checkpoint, prove Prover) (string, error) {
	for range 2 { // the second time with what the witness says it knows
		answer, known, err := c.post(ctx, checkpoint, prove)
		if err != nil {
			return "", fmt.Errorf("witness %s: %w", c.Key.Name(), err)
		}
		if answer != "" {
			c.last = checkpoint.Size
			return answer, nil
		}
		if known > checkpoint.Size {
			return "", &AheadError{c.Key.Name(), known, checkpoint.Size}
		}
		c.last = known
	}
	return "", fmt.Errorf("witness %s: it changes its mind about how much of the log it has seen", c.Key.Name())
}

// post sends one submission. Without an answer, known is the size that the witness knows.
func (c *Client) post(ctx context.Context, checkpoint *audit.Checkpoint, prove Prover) (answer string, known int64, err error) {
	proof, err := prove(min(c.last, checkpoint.Size))
	if err != nil {
		return "", 0, err
	}
	body := fmt.Appendf(nil, "old %d\n", min(c.last, checkpoint.Size))
	for _, h := range proof {
		body = fmt.Appendf(body, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	body = fmt.Appendf(body, "\n%s", checkpoint.Note)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.URL, "/")+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return "", 0, err
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	if err != nil {
		return "", 0, err
	}
	switch {
	case resp.StatusCode == http.StatusConflict && resp.Header.Get("Content-Type") == "text/x.tlog.size":
		known, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return "", known, err
	case resp.StatusCode != http.StatusOK:
		return "", 0, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	lines, err := c.cosignatures(checkpoint, string(text))
	return lines, 0, err
}

// cosignatures are the valid lines of this witness in its answer.
func (c *Client) cosignatures(checkpoint *audit.Checkpoint, answer string) (string, error) {
	n, err := note.Open([]byte(checkpoint.Text()+"\n"+answer), note.VerifierList(c.Key))
	if err != nil {
		return "", fmt.Errorf("its answer is not signed with its key: %w", err)
	}
	var b strings.Builder
	for _, sig := range n.Sigs {
		fmt.Fprintf(&b, "— %s %s\n", sig.Name, sig.Base64)
	}
	return b.String(), nil
}
