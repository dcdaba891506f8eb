// Package witness lets one instance watch over the audit log of another. A log sends each checkpoint that it signs to its
// witnesses; a witness remembers how long the log was, requires proof that the new log begins with the old one, and cosigns
// (C2SP tlog-witness and tlog-cosignature). A log that was put back, or written anew, finds no witness any more.
package witness

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// algorithm is the type of cosignature keys (C2SP tlog-cosignature, Ed25519).
const algorithm = 4

// Verifier checks cosignatures of one witness. It is a note.Verifier.
type Verifier struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// NewVerifier reads a witness's key, name+hash+base64 (C2SP signed-note).
func NewVerifier(text string) (*Verifier, error) {
	parts := strings.SplitN(text, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("witness key %q: want NAME+HASH+KEY", text)
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != algorithm {
		return nil, fmt.Errorf("witness key %q: not an Ed25519 cosignature key", text)
	}
	v := newVerifier(parts[0], raw[1:])
	if parts[1] != fmt.Sprintf("%08x", v.hash) {
		return nil, fmt.Errorf("witness key %q: the hash is not that of the key", text)
	}
	return v, nil
}

func newVerifier(name string, key ed25519.PublicKey) *Verifier {
	sum := sha256.Sum256([]byte(name + "\n" + string(append([]byte{algorithm}, key...))))
	return &Verifier{name, binary.BigEndian.Uint32(sum[:]), key}
}

// String is what NewVerifier reads.
func (v *Verifier) String() string {
	return fmt.Sprintf("%s+%08x+%s", v.name, v.hash, base64.StdEncoding.EncodeToString(append([]byte{algorithm}, v.key...)))
}

// Name implements note.Verifier.
func (v *Verifier) Name() string { return v.name }

// KeyHash implements note.Verifier.
func (v *Verifier) KeyHash() uint32 { return v.hash }

// Verify implements note.Verifier. A cosignature is eight octets of Unix time and a signature over it and the checkpoint.
func (v *Verifier) Verify(text, sig []byte) bool {
	return len(sig) == 8+ed25519.SignatureSize && ed25519.Verify(v.key, message(binary.BigEndian.Uint64(sig), text), sig[8:])
}

func message(unix uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", unix, text)
}

// Time is when a witness has seen a checkpoint.
func Time(sig note.Signature) (time.Time, error) {
	raw, err := base64.StdEncoding.DecodeString(sig.Base64)
	if err != nil || len(raw) != 4+8+ed25519.SignatureSize {
		return time.Time{}, errors.New("the cosignature is malformed")
	}
	return time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0).UTC(), nil
}

// Signer makes cosignatures. It is a note.Signer.
type Signer struct {
	*Verifier
	private ed25519.PrivateKey
	now     func() time.Time
}

// NewSigner returns the signer of a witness; its name is the gateway's host name.
func NewSigner(name string, key ed25519.PrivateKey, now func() time.Time) *Signer {
	return &Signer{newVerifier(name, key.Public().(ed25519.PublicKey)), key, now}
}

// Sign implements note.Signer.
func (s *Signer) Sign(text []byte) ([]byte, error) {
	unix := uint64(s.now().Unix())
	return append(binary.BigEndian.AppendUint64(nil, unix), ed25519.Sign(s.private, message(unix, text))...), nil
}
