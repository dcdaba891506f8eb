package ldapsync

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/crypto/etype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Wrap tokens of the Kerberos GSS mechanism (RFC 4121 4.2.6.2). A token is a header of 16 octets
//
//	05 04  flags  FF  EC (2)  RRC (2)  SND_SEQ (8)
//
// and, sealed, the encryption of plaintext | EC octets of filler | the header with RRC 0, or, signed only, plaintext |
// checksum of EC octets. The part after the header is rotated right by RRC octets.
const (
	wrapHeaderSize = 16

	flagAcceptor = 1 // sent by the server
	flagSealed   = 2
	flagSubkey   = 4 // protected by the key that the server chose
)

// wrapper protects messages of one security context as the initiator, and opens the acceptor's. It is not safe for
// concurrent use by two senders, or two receivers; one of each is fine.
type wrapper struct {
	key    types.EncryptionKey
	etype  etype.EType
	subkey bool // whether key is the acceptor's subkey

	sendSeq, recvSeq     uint64 // of the next token
	sendUsage, recvUsage uint32 // RFC 4121 2: wrap tokens use the seal usages, sealed or not
	sendFlags, recvFlags byte
}

// newWrapper makes the initiator's side of a context.
func newWrapper(key types.EncryptionKey, subkey bool, sendSeq, recvSeq uint64) (*wrapper, error) {
	e, err := aesType(key)
	if err != nil {
		return nil, err
	}
	w := &wrapper{key: key, etype: e, subkey: subkey, sendSeq: sendSeq, recvSeq: recvSeq,
		sendUsage: keyusage.GSSAPI_INITIATOR_SEAL, recvUsage: keyusage.GSSAPI_ACCEPTOR_SEAL, recvFlags: flagAcceptor}
	if subkey {
		w.sendFlags |= flagSubkey
		w.recvFlags |= flagSubkey
	}
	return w, nil
}

// aesType accepts AES keys only: the token format for the old ciphers is another one, and they are broken.
func aesType(key types.EncryptionKey) (etype.EType, error) {
	size := 32
	switch key.KeyType {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA256_128:
		size = 16
	case etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA384_192:
	default:
		return nil, fmt.Errorf("kerberos encryption type %d is not AES; "+
			"set msDS-SupportedEncryptionTypes of the domain controller's account to AES", key.KeyType)
	}
	e, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		return nil, err
	}
	if len(key.KeyValue) != size {
		return nil, fmt.Errorf("kerberos key of %d octets, want %d", len(key.KeyValue), size)
	}
	return e, nil
}

// overhead is how much longer a sealed token is than what it carries.
func (w *wrapper) overhead() int {
	return wrapHeaderSize + w.etype.GetConfounderByteSize() + wrapHeaderSize + w.etype.GetHMACBitLength()/8
}

func header(flags byte, ec, rrc uint16, seq uint64) []byte {
	h := []byte{5, 4, flags, 0xff}
	h = binary.BigEndian.AppendUint16(h, ec)
	h = binary.BigEndian.AppendUint16(h, rrc)
	return binary.BigEndian.AppendUint64(h, seq)
}

// seal encrypts a message.
func (w *wrapper) seal(plain []byte) ([]byte, error) {
	h := header(w.sendFlags|flagSealed, 0, 0, w.sendSeq)
	_, sealed, err := w.etype.EncryptMessage(w.key.KeyValue, append(bytes.Clone(plain), h...), w.sendUsage)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	w.sendSeq++
	return append(h, sealed...), nil
}

// sign protects a message without hiding it.
func (w *wrapper) sign(plain []byte) ([]byte, error) {
	flags := w.sendFlags
	// The checksum is over the message and the header with EC and RRC 0 (RFC 4121 4.2.4).
	sum, err := w.etype.GetChecksumHash(w.key.KeyValue, append(bytes.Clone(plain), header(flags, 0, 0, w.sendSeq)...), w.sendUsage)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	token := append(header(flags, uint16(len(sum)), 0, w.sendSeq), plain...)
	w.sendSeq++
	return append(token, sum...), nil
}

// open verifies the acceptor's next token and returns the message in it. With sealed it must have been encrypted.
func (w *wrapper) open(token []byte, sealed bool) ([]byte, error) {
	if len(token) < wrapHeaderSize {
		return nil, fmt.Errorf("wrap token of %d octets, the header needs %d", len(token), wrapHeaderSize)
	}
	flags, seq := token[2], binary.BigEndian.Uint64(token[8:])
	ec, rrc := int(binary.BigEndian.Uint16(token[4:])), int(binary.BigEndian.Uint16(token[6:]))
	want := w.recvFlags
	if sealed {
		want |= flagSealed
	}
	switch {
	case token[0] != 5 || token[1] != 4 || token[3] != 0xff:
		return nil, errors.New("not a wrap token")
	case flags != want && flags != want|flagSealed: // a message may be better protected than agreed
		return nil, fmt.Errorf("wrap token with flags 0x%02x, want 0x%02x", flags, want)
	case seq != w.recvSeq:
		return nil, fmt.Errorf("wrap token number %d, want %d: a message was lost, repeated or reordered", seq, w.recvSeq)
	}
	body := unrotate(token[wrapHeaderSize:], rrc)
	var plain []byte
	var err error
	if flags&flagSealed != 0 {
		plain, err = w.decrypt(body, flags, ec, seq)
	} else {
		plain, err = w.verify(body, flags, ec, seq)
	}
	if err != nil {
		return nil, err
	}
	w.recvSeq++
	return plain, nil
}

// unrotate undoes the rotation to the right by rrc octets (RFC 4121 4.2.5).
func unrotate(b []byte, rrc int) []byte {
	if len(b) == 0 {
		return nil
	}
	n := rrc % len(b)
	return append(bytes.Clone(b[n:]), b[:n]...)
}

func (w *wrapper) decrypt(body []byte, flags byte, ec int, seq uint64) ([]byte, error) {
	if least := w.overhead() - wrapHeaderSize + ec; len(body) < least {
		return nil, fmt.Errorf("sealed message of %d octets, need at least %d", len(body), least)
	}
	plain, err := w.etype.DecryptMessage(w.key.KeyValue, body, w.recvUsage)
	if err != nil {
		return nil, fmt.Errorf("sealed message: %w", err)
	}
	if len(plain) < ec+wrapHeaderSize {
		return nil, fmt.Errorf("sealed message: %d octets inside, need at least %d", len(plain), ec+wrapHeaderSize)
	}
	end := len(plain) - wrapHeaderSize
	// The header outside is not encrypted: the copy inside proves it.
	if !hmac.Equal(plain[end:], header(flags, uint16(ec), 0, seq)) {
		return nil, errors.New("sealed message: the header was changed on the way")
	}
	return plain[:end-ec], nil
}

func (w *wrapper) verify(body []byte, flags byte, ec int, seq uint64) ([]byte, error) {
	if size := w.etype.GetHMACBitLength() / 8; ec != size || len(body) < ec {
		return nil, fmt.Errorf("signed message of %d octets with a checksum of %d, want %d", len(body), ec, size)
	}
	plain, sum := body[:len(body)-ec], body[len(body)-ec:]
	signed := append(bytes.Clone(plain), header(flags, 0, 0, seq)...)
	if !w.etype.VerifyChecksum(w.key.KeyValue, signed, sum, w.recvUsage) {
		return nil, errors.New("signed message: wrong checksum")
	}
	return plain, nil
}
