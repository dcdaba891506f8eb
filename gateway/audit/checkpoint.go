package audit

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Signer signs checkpoints. Its public half is all that is needed to check them, and proofs, anywhere.
type Signer struct {
	name string
	key  ed25519.PrivateKey
	hash uint32
	text string
}

// NewSigner returns the signer of the log with a name, which is the gateway's host name.
func NewSigner(name string, key ed25519.PrivateKey) (*Signer, error) {
	text, err := note.NewEd25519VerifierKey(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("audit: the log's name %q: %w", name, err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &Signer{name: name, key: key, hash: v.KeyHash(), text: text}, nil
}

// Name implements note.Signer.
func (s *Signer) Name() string { return s.name }

// KeyHash implements note.Signer.
func (s *Signer) KeyHash() uint32 { return s.hash }

// Sign implements note.Signer.
func (s *Signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// VerifierKey is the public key as golang.org/x/mod/sumdb/note writes it: name+hash+base64.
func (s *Signer) VerifierKey() string { return s.text }

// Checkpoint is the state of the log at one moment, signed: a later log has to begin with it (C2SP tlog-checkpoint).
type Checkpoint struct {
	Size int64
	Root tlog.Hash
	Note string // the signed text
}

// Text is what is signed: the log's name, the size and the root.
func (c *Checkpoint) Text() string {
	text, _, _ := strings.Cut(c.Note, "\n\n")
	return text + "\n"
}

// OpenCheckpoint checks the signature of a checkpoint and reads it.
func OpenCheckpoint(text string, v note.Verifier) (*Checkpoint, error) {
	n, err := note.Open([]byte(text), note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != v.Name() {
		return nil, errors.New("checkpoint: of another log, or malformed")
	}
	c := &Checkpoint{Note: text}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 {
		return nil, fmt.Errorf("checkpoint: size %q is not a number", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return nil, errors.New("checkpoint: the root is not a hash")
	}
	c.Root = tlog.Hash(root)
	return c, nil
}

// size is how many lines the log has.
func size(ctx context.Context, db querier) (n int64, err error) {
	if err := db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM audit").Scan(&n); err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	return n, nil
}

// Sign signs the log as it is in the transaction, with all of its lines in the tree, and keeps the checkpoint; one of the same
// size is returned again.
func Sign(ctx context.Context, tx *sql.Tx, now time.Time, s *Signer) (*Checkpoint, error) {
	n, err := size(ctx, tx)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(s.text)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var text string
	err = tx.QueryRowContext(ctx, "SELECT note FROM audit_checkpoints WHERE size = ?", n).Scan(&text)
	if err == nil {
		return OpenCheckpoint(text, v)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if _, err := Grow(ctx, tx, n); err != nil {
		return nil, err
	}
	root, err := tlog.TreeHash(n, nodes{ctx, tx})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	body := fmt.Sprintf("%s\n%d\n%s\n", s.name, n, base64.StdEncoding.EncodeToString(root[:]))
	signed, err := note.Sign(&note.Note{Text: body}, s)
	if err != nil {
		return nil, fmt.Errorf("audit: sign checkpoint: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO audit_checkpoints (size, time, note) VALUES (?, ?, ?)", n, now.UnixMilli(), string(signed)); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return &Checkpoint{n, root, string(signed)}, nil
}

// ProveBegin makes the proof that the log of a checkpoint begins with its first old lines (RFC 6962 2.1.2); none is needed from
// nothing or from the same size.
func ProveBegin(ctx context.Context, db *sql.DB, c *Checkpoint, old int64) (tlog.TreeProof, error) {
	if old <= 0 || old >= c.Size {
		return nil, nil
	}
	p, err := tlog.ProveTree(c.Size, old, nodes{ctx, db})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return p, nil
}

// Cosign keeps the cosignatures of witnesses (signature lines) with a checkpoint.
func Cosign(ctx context.Context, tx *sql.Tx, c *Checkpoint, lines string) error {
	_, err := tx.ExecContext(ctx, "UPDATE audit_checkpoints SET note = ? WHERE size = ?", c.Note+lines, c.Size)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	c.Note += lines
	return nil
}

// LastCosigned is the newest checkpoint that a witness has cosigned, with its signature; nil where there is none.
func LastCosigned(ctx context.Context, db *sql.DB, witness note.Verifier) (*Checkpoint, *note.Signature, error) {
	rows, err := db.QueryContext(ctx, "SELECT size, note FROM audit_checkpoints ORDER BY size DESC")
	if err != nil {
		return nil, nil, fmt.Errorf("audit: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		c := &Checkpoint{}
		if err := rows.Scan(&c.Size, &c.Note); err != nil {
			return nil, nil, fmt.Errorf("audit: %w", err)
		}
		if n, err := note.Open([]byte(c.Note), note.VerifierList(witness)); err == nil {
			return c, &n.Sigs[0], nil
		}
	}
	return nil, nil, rows.Err()
}

// begins requires that a log of n lines begins with what the checkpoint says.
func (c *Checkpoint) begins(n int64, tree tlog.HashReader) error {
	if c.Size > n {
		return fmt.Errorf("the log has %d lines, a checkpoint was signed over %d: it was put back to an earlier state", n, c.Size)
	}
	root, err := tlog.TreeHash(c.Size, tree)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("the first %d lines are not those that the checkpoint was signed over", c.Size)
	}
	return nil
}

// Proof shows, to who has nothing but the log's public key, that a line is in the log.
type Proof struct {
	Line       json.RawMessage  `json:"line"` // as exported: its octets are what is proven
	Seq        int64            `json:"seq"`
	Hashes     tlog.RecordProof `json:"hashes"` // RFC 6962 2.1.1
	Checkpoint string           `json:"checkpoint"`
}

// Prove makes the proof for a line.
func Prove(ctx context.Context, tx *sql.Tx, now time.Time, s *Signer, seq int64) (*Proof, error) {
	c, err := Sign(ctx, tx, now, s)
	if err != nil {
		return nil, err
	}
	if seq < 1 || seq > c.Size {
		return nil, fmt.Errorf("audit: there is no line %d; the log has %d", seq, c.Size)
	}
	var line Line
	err = each(ctx, tx, seq-1, func(l Line, _, _ []byte) error {
		line = l
		return errEnough
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	p := &Proof{Seq: seq, Checkpoint: c.Note}
	if p.Line, err = line.leaf(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if p.Hashes, err = tlog.ProveRecord(c.Size, seq-1, nodes{ctx, tx}); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return p, nil
}

// Check verifies a proof with the log's public key alone.
func (p *Proof) Check(verifierKey string) (*Line, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("the log's key: %w", err)
	}
	c, err := OpenCheckpoint(p.Checkpoint, v)
	if err != nil {
		return nil, err
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Seq-1, tlog.RecordHash(p.Line)); err != nil {
		return nil, fmt.Errorf("line %d is not in the log that was signed: %w", p.Seq, err)
	}
	var l Line
	if err := json.Unmarshal(p.Line, &l); err != nil || l.Seq != p.Seq {
		return nil, fmt.Errorf("line %d is malformed", p.Seq)
	}
	return &l, nil
}
