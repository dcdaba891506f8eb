package quorum

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

func same(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func (r *Record) marshalBinding() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1OctetString(r.ID)
		b.AddASN1OctetString(r.KeyID)
		addText(b, r.Owner)
		addText(b, r.Policy)
		b.AddASN1Int64(int64(r.Required))
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, h := range r.Holders {
				fingerprint, err := hex.DecodeString(h.Fingerprint)
				if err != nil {
					b.SetError(err)
					return
				}
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(fingerprint)
					b.AddASN1OctetString(h.Verifier)
					if h.Protection != ByCertificate {
						b.AddASN1Int64(int64(h.Protection))
					}
				})
			}
		})
	})
	return b.Bytes()
}

func (r *Record) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(r.version())
		b.AddBytes(r.binding)
		b.AddASN1OctetString(r.content)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, s := range r.shares {
				b.AddASN1OctetString(s)
			}
		})
	})
	return b.Bytes()
}

// version is the lowest that can express the record.
func (r *Record) version() int64 {
	for _, h := range r.Holders {
		if h.Protection != ByCertificate {
			return versionHybrid
		}
	}
	return versionPlain
}

// readProtection reads what follows a holder's verifier.
func readProtection(holder *cryptobyte.String) (p Protection, ok bool) {
	if holder.Empty() {
		return ByCertificate, true
	}
	var n int
	ok = holder.ReadASN1Integer(&n) && holder.Empty() && (n == int(ByBoth) || n == int(ByHybrid))
	return Protection(n), ok
}

// Parse reads a record. What it says is not proven before Combine succeeds.
func Parse(der []byte) (*Record, error) {
	if len(der) > MaxRecord {
		return nil, fmt.Errorf("quorum record: %d octets, at most %d are read", len(der), MaxRecord)
	}
	r := &Record{}
	s := cryptobyte.String(der)
	var seq, binding, content, shares cryptobyte.String
	var v int
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1Integer(&v) {
		return nil, errors.New("quorum record: malformed")
	}
	if v != versionPlain && v != versionHybrid {
		return nil, fmt.Errorf("quorum record: version %d is not understood; a newer gateway wrote it", v)
	}
	if !seq.ReadASN1Element(&binding, asn1.SEQUENCE) || !seq.ReadASN1(&content, asn1.OCTET_STRING) || !seq.ReadASN1(&shares, asn1.SEQUENCE) || !seq.Empty() {
		return nil, errors.New("quorum record: malformed")
	}
	r.binding, r.content = binding, content
	if err := r.readBinding(binding); err != nil {
		return nil, err
	}
	if int64(v) != r.version() {
		return nil, fmt.Errorf("quorum record: version %d does not go with what protects its shares", v)
	}
	for !shares.Empty() {
		var share cryptobyte.String
		if !shares.ReadASN1(&share, asn1.OCTET_STRING) || len(r.shares) == len(r.Holders) {
			return nil, errors.New("quorum record: malformed shares")
		}
		r.shares = append(r.shares, share)
	}
	if len(r.shares) != len(r.Holders) {
		return nil, fmt.Errorf("quorum record: %d shares for %d agents", len(r.shares), len(r.Holders))
	}
	return r, nil
}

func (r *Record) readBinding(der cryptobyte.String) error {
	var seq, id, keyID, holders cryptobyte.String
	if !der.ReadASN1(&seq, asn1.SEQUENCE) || !der.Empty() || !readOctets(&seq, &id, idSize) || !readOctets(&seq, &keyID, sha256.Size) ||
		!readText(&seq, &r.Owner) || !readText(&seq, &r.Policy) || !seq.ReadASN1Integer(&r.Required) || !seq.ReadASN1(&holders, asn1.SEQUENCE) || !seq.Empty() {
		return errors.New("quorum record: malformed binding")
	}
	r.ID, r.KeyID = id, keyID
	for !holders.Empty() {
		var holder, fingerprint, verifier cryptobyte.String
		if len(r.Holders) == MaxAgents || !holders.ReadASN1(&holder, asn1.SEQUENCE) || !readOctets(&holder, &fingerprint, sha256.Size) ||
			!readOctets(&holder, &verifier, ed25519.PublicKeySize) {
			return errors.New("quorum record: malformed holders")
		}
		protection, ok := readProtection(&holder)
		if !ok {
			return errors.New("quorum record: malformed holders")
		}
		name := hex.EncodeToString(fingerprint)
		if r.Holder(name) != nil {
			return fmt.Errorf("quorum record: the agent %s occurs twice", name)
		}
		r.Holders = append(r.Holders, Holder{name, ed25519.PublicKey(verifier), protection})
	}
	if r.Required < 1 || r.Required > len(r.Holders) {
		return fmt.Errorf("quorum record: %d of %d agents", r.Required, len(r.Holders))
	}
	return nil
}

// Marshal returns the share as DER: secret, the caller wipes it.
func (s *Share) Marshal() ([]byte, error) {
	// One buffer that never grows: no copy of the share is left behind.
	b := cryptobyte.NewBuilder(make([]byte, 0, 2*idSize+2*sha256.Size+scalarSize+len(s.Policy)+64))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(versionShare)
		b.AddASN1OctetString(s.Record)
		b.AddASN1OctetString(s.KeyID)
		addText(b, s.Policy)
		b.AddASN1Int64(int64(s.Index))
		b.AddASN1OctetString(s.value)
	})
	return b.Bytes()
}

// ParseShare reads what Marshal wrote.
func ParseShare(der []byte) (*Share, error) {
	in := cryptobyte.String(der)
	var seq, record, keyID, value cryptobyte.String
	var v int
	s := &Share{}
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&v) || v != versionShare || !readOctets(&seq, &record, idSize) ||
		!readOctets(&seq, &keyID, sha256.Size) || !readText(&seq, &s.Policy) || !seq.ReadASN1Integer(&s.Index) ||
		!readOctets(&seq, &value, scalarSize) || !seq.Empty() || s.Index < 1 || s.Index > MaxAgents {
		return nil, errors.New("malformed, or of another version")
	}
	// The caller wipes der.
	s.Record, s.KeyID, s.value = append([]byte{}, record...), append([]byte{}, keyID...), append([]byte{}, value...)
	return s, nil
}

func addText(b *cryptobyte.Builder, text string) {
	b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
}

func readText(s *cryptobyte.String, out *string) bool {
	var text cryptobyte.String
	if !s.ReadASN1(&text, asn1.UTF8String) || len(text) > maxName || !utf8.Valid(text) {
		return false
	}
	*out = string(text)
	return true
}

func readOctets(s, out *cryptobyte.String, size int) bool {
	return s.ReadASN1(out, asn1.OCTET_STRING) && len(*out) == size
}
