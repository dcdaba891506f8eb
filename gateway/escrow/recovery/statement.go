// Package recovery is what happens on people's own machines when an archived key is recovered; the gateway only checks it.
//
// Who may have the key makes a CaseKey and a Statement with its public half. Each recovery agent opens a share with the
// agent's own key and seals it to the case key (Approve). Who has the case key puts the shares together (Combine). The gateway
// keeps statement and approvals, and can open neither the key nor a share. What is passed from hand to hand are File and
// Approval, as JSON.
package recovery

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
)

// Statement says what is asked for. It is fixed on the machine of who opens the case, and agents approve just this.
type Statement struct {
	Record    int64  `json:"record"` // number of the archived key
	KeyID     string `json:"key_id"` // SHA-256 of its SubjectPublicKeyInfo, hexadecimal
	Owner     string `json:"owner"`
	Manager   string `json:"manager"`   // who opens the case
	Recipient string `json:"recipient"` // account of the person who is given the key
	Reason    string `json:"reason"`
	PublicKey []byte `json:"public_key"` // of the case key
}

// Limits of what is read.
const (
	MaxReason   = 2000
	maxName     = 256
	maxFile     = 4 << 20
	MaxApproval = 64 << 10
)

// Check refuses a statement that lacks something or that a person could misread.
func (s *Statement) Check() error {
	id, err := hex.DecodeString(s.KeyID)
	switch {
	case s.Record <= 0:
		return errors.New("the number of the archived key is missing")
	case err != nil || len(id) != sha256.Size || s.KeyID != hex.EncodeToString(id):
		return errors.New("key_id is not a SHA-256 in lower case hexadecimal")
	case s.Owner == "" || len(s.Owner) > maxName || !readable(s.Owner):
		return errors.New("the owner is missing or not readable")
	case s.Manager == "" || len(s.Manager) > maxName || !readable(s.Manager):
		return errors.New("the manager is missing or not readable")
	case s.Recipient == "" || len(s.Recipient) > maxName || !readable(s.Recipient):
		return errors.New("name the person who is given the key")
	}
	if err := CheckReason(s.Reason); err != nil {
		return err
	}
	if _, err = kem().NewPublicKey(s.PublicKey); err != nil {
		return errors.New("the public half of the case key is malformed")
	}
	return nil
}

// CheckReason requires that something is written, on one line that can be shown to people.
func CheckReason(text string) error {
	switch {
	case strings.TrimSpace(text) == "":
		return errors.New("a written reason is needed")
	case len(text) > MaxReason:
		return fmt.Errorf("the reason has more than %d octets", MaxReason)
	case !readable(text):
		return errors.New("the reason has characters that cannot be shown; write it on one line")
	}
	return nil
}

// readable is text without control and formatting characters, which could hide on a terminal what is approved.
func readable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) })
}

// Hash identifies the statement: whoever holds the same hash means the same statement.
func (s *Statement) Hash() []byte {
	var b cryptobyte.Builder
	b.AddUint64(uint64(s.Record))
	for _, part := range [][]byte{[]byte(s.KeyID), []byte(s.Owner), []byte(s.Manager), []byte(s.Recipient), []byte(s.Reason), s.PublicKey} {
		b.AddUint32LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(part) })
	}
	return digest("enrollgate recovery statement 1", b.BytesOrPanic())
}

// Code is the statement's hash for people: 80 bits in four groups. An agent compares it with the one that who opened the case
// tells on another way than through the gateway; so a gateway that is not to be trusted cannot change what is approved, or put
// in a case key of its own.
func (s *Statement) Code() string { return codeOf(s.Hash()) }

func codeOf(hash []byte) string {
	text := strings.ToUpper(codeAlphabet.EncodeToString(hash[:10]))
	return text[:4] + "-" + text[4:8] + "-" + text[8:12] + "-" + text[12:]
}

// codeAlphabet is Crockford's base32: no I, L, O or U.
var codeAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// codeIs compares what a person typed.
func (s *Statement) codeIs(typed string) bool { return codeMatches(s.Hash(), typed) }

func codeMatches(hash []byte, typed string) bool {
	plain := strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1")
	return subtle.ConstantTimeCompare([]byte(plain.Replace(strings.ToUpper(typed))), []byte(strings.ReplaceAll(codeOf(hash), "-", ""))) == 1
}

func digest(label string, parts ...[]byte) []byte {
	h := sha256.New()
	h.Write([]byte(label + "\x00"))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Decode reads one JSON value of at most limit octets, with no field that is not known.
func Decode(r io.Reader, limit int64, into any) error {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return err
	}
	if int64(len(text)) > limit {
		return fmt.Errorf("more than %d octets", limit)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
