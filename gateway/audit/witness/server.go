package witness

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// maxRequest is the size in octets up to which a submission is read; maxProof is the protocol's number of hashes.
const (
	maxRequest = 64 << 10
	maxProof   = 63
)

// Witness watches over the logs of other instances. All methods are safe for concurrent use.
type Witness struct {
	db     *store.DB
	signer *Signer
	logs   map[string]note.Verifier
	now    func() time.Time
}

// New returns a witness of the logs with these keys (name+hash+base64, as audit checkpoint prints them).
func New(db *store.DB, signer *Signer, logs []string, now func() time.Time) (*Witness, error) {
	w := &Witness{db, signer, map[string]note.Verifier{}, now}
	for _, text := range logs {
		v, err := note.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("log key %q: %w", text, err)
		}
		w.logs[v.Name()] = v
	}
	return w, nil
}

// Key is the witness's public key, which its logs are configured with.
func (w *Witness) Key() string { return w.signer.String() }

// State is what the witness remembers of a log.
type State struct {
	Log        string    `json:"log"`
	Size       int64     `json:"size"`
	Seen       time.Time `json:"seen"`
	Checkpoint string    `json:"checkpoint"`
}

// States are the logs that were seen.
func (w *Witness) States(ctx context.Context) ([]State, error) {
	rows, err := w.db.SQL.QueryContext(ctx, "SELECT origin, size, seen, note FROM audit_witnessed ORDER BY origin")
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	defer rows.Close()
	var out []State
	for rows.Next() {
		var s State
		var seen int64
		if err := rows.Scan(&s.Log, &s.Size, &seen, &s.Checkpoint); err != nil {
			return nil, fmt.Errorf("witness: %w", err)
		}
		s.Seen = time.UnixMilli(seen).UTC()
		out = append(out, s)
	}
	return out, rows.Err()
}

// refusal is an answer other than the cosignature.
type refusal struct {
	status int
	text   string
	size   bool // text is the size of the log as the witness knows it
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers POST add-checkpoint.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxRequest))
	if err != nil {
		http.Error(rw, "the submission cannot be read, or is too long", http.StatusBadRequest)
		return
	}
	cosignature, err := w.add(r.Context(), body)
	if no, ok := errors.AsType[*refusal](err); ok {
		if no.size {
			rw.Header().Set("Content-Type", "text/x.tlog.size")
			rw.WriteHeader(no.status)
			_, _ = io.WriteString(rw, no.text+"\n") // the client may be gone
			return
		}
		http.Error(rw, no.text, no.status)
		return
	}
	if err != nil {
		http.Error(rw, "the witness cannot remember the checkpoint", http.StatusServiceUnavailable)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(rw, cosignature)
}

// submission is a checkpoint with the proof that it follows on the old one.
type submission struct {
	old   int64
	proof tlog.TreeProof
	text  string
}

func parseSubmission(body []byte) (*submission, error) {
	head, text, ok := strings.Cut(string(body), "\n\n")
	lines := strings.Split(head, "\n")
	size, isOld := strings.CutPrefix(lines[0], "old ")
	if !ok || !isOld || len(lines) > 1+maxProof {
		return nil, refuse(http.StatusBadRequest, "the submission is malformed")
	}
	s := &submission{text: text}
	var err error
	if s.old, err = strconv.ParseInt(size, 10, 64); err != nil || s.old < 0 || strconv.FormatInt(s.old, 10) != size {
		return nil, refuse(http.StatusBadRequest, "the old size is malformed")
	}
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return nil, refuse(http.StatusBadRequest, "the proof is malformed")
		}
		s.proof = append(s.proof, tlog.Hash(hash))
	}
	return s, nil
}

// add checks a submission and returns the cosignature. That the old size is the last one and that the new one is remembered is
// one transaction.
func (w *Witness) add(ctx context.Context, body []byte) (string, error) {
	s, err := parseSubmission(body)
	if err != nil {
		return "", err
	}
	origin, _, _ := strings.Cut(s.text, "\n")
	v, ok := w.logs[origin]
	if !ok {
		return "", refuse(http.StatusNotFound, "this witness does not watch over that log")
	}
	c, err := audit.OpenCheckpoint(s.text, v)
	if err != nil {
		return "", refuse(http.StatusForbidden, "the checkpoint is not signed by the log's key")
	}
	if s.old > c.Size {
		return "", refuse(http.StatusBadRequest, "the old size is more than the new one")
	}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, w.signer)
	if err != nil {
		return "", fmt.Errorf("witness: %w", err)
	}
	err = w.db.Write(ctx, func(tx *sql.Tx) error { return w.remember(tx, origin, s, c) })
	if err != nil {
		return "", err
	}
	_, cosignature, _ := strings.Cut(string(signed), "\n\n")
	return cosignature, nil
}

func (w *Witness) remember(tx *sql.Tx, origin string, s *submission, c *audit.Checkpoint) error {
	var last int64
	var root []byte
	err := tx.QueryRow("SELECT size, root FROM audit_witnessed WHERE origin = ?", origin).Scan(&last, &root)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("witness: %w", err)
	case s.old != last:
		return &refusal{http.StatusConflict, strconv.FormatInt(last, 10), true}
	case last == 0 && len(s.proof) > 0:
		return refuse(http.StatusUnprocessableEntity, "a proof from nothing")
	case last > 0 && last == c.Size && !bytes.Equal(root, c.Root[:]):
		return refuse(http.StatusConflict, "the log of this size is another one")
	case last > 0 && last < c.Size:
		if err := tlog.CheckTree(s.proof, c.Size, c.Root, last, tlog.Hash(root)); err != nil {
			return refuse(http.StatusUnprocessableEntity, "the log does not begin with the one that was cosigned before")
		}
	}
	_, err = tx.Exec(`INSERT INTO audit_witnessed (origin, size, root, seen, note) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = excluded.root, seen = excluded.seen, note = excluded.note`,
		origin, c.Size, c.Root[:], w.now().UnixMilli(), c.Note)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	return nil
}
