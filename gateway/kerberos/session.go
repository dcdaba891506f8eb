package kerberos

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what the encryption types of RFC 3962 are made of
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	krbcrypto "github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/enrollgate/enrollgate/templates"
)

// Lengths of the tokens that a Session makes.
const (
	SealLength = tokenHeader + aes.BlockSize + extraCount + tokenHeader + macLength // 76
	SignLength = tokenHeader + macLength                                            // 28
)

const (
	tokenHeader = 16
	macLength   = 12 // HMAC-SHA1-96
	extraCount  = 16 // EC of our wrap tokens, as Windows writes it
	// rightRotation is RRC: in DCE style the copy of the header and the MAC ([MS-KILE] 3.4.5.4.1).
	rightRotation = tokenHeader + macLength
)

// Flags and key usages of tokens (RFC 4121 4.2.2, 2).
const (
	byAcceptor = 1
	isSealed   = 2
	withSubkey = 4

	usageAcceptorSeal  = 22
	usageAcceptorSign  = 23
	usageInitiatorSeal = 24
	usageInitiatorSign = 25
)

// Session protects the messages of one security context with AES wrap and MIC tokens (RFC 4121 4.2.6, RFC 3962) in DCE style
// ([MS-KILE] 3.4.5.4, 3.4.5.6). Seal and Sign are for one goroutine, Unseal and Verify for one, which may be another.
//
// Each takes what is protected in parts: before and after are signed only, and empty without header signing.
type Session struct {
	Caller  templates.Caller
	Expires time.Time // of the ticket, and the clock difference that is tolerated

	theirs, ours protection

	send  uint64
	based bool   // receive is set by a token
	first uint32 // the sequence number of the AP-REQ
	next  uint64
}

// protection has the keys of one direction.
type protection struct {
	block     cipher.Block // Ke
	seal      []byte       // Ki
	sign      []byte       // Kc
	encrypted []byte       // Ke, to be wiped
}

// newSession derives the keys (RFC 3961 5.3) from the acceptor's subkey; the numbers are those of the two AP messages.
func newSession(key types.EncryptionKey, theirs, ours uint32) (*Session, error) {
	s := &Session{first: theirs, send: uint64(ours)}
	var err error
	if s.theirs, err = protectionOf(key, usageInitiatorSeal, usageInitiatorSign); err != nil {
		return nil, err
	}
	s.ours, err = protectionOf(key, usageAcceptorSeal, usageAcceptorSign)
	return s, err
}

func protectionOf(key types.EncryptionKey, seal, sign byte) (p protection, err error) {
	etype, err := krbcrypto.GetEtype(key.KeyType)
	if err != nil {
		return p, fmt.Errorf("encryption type %d: %w", key.KeyType, err)
	}
	for _, k := range []struct {
		out   *[]byte
		usage []byte
	}{{&p.encrypted, []byte{0, 0, 0, seal, 0xaa}}, {&p.seal, []byte{0, 0, 0, seal, 0x55}}, {&p.sign, []byte{0, 0, 0, sign, 0x99}}} {
		if *k.out, err = etype.DeriveKey(key.KeyValue, k.usage); err != nil {
			return p, fmt.Errorf("derive a key: %w", err)
		}
	}
	p.block, err = aes.NewCipher(p.encrypted)
	return p, err
}

// Expired tells whether the ticket that the session began with has ended, and more than the clock difference is over.
func (s *Session) Expired(now time.Time) bool { return now.After(s.Expires) }

// Close forgets the keys, as far as Go lets it.
func (s *Session) Close() {
	for _, p := range []*protection{&s.theirs, &s.ours} {
		clear(p.encrypted)
		clear(p.seal)
		clear(p.sign)
		p.block = nil
	}
}

var (
	errToken  = errors.New("the token is malformed")
	errMAC    = errors.New("the token does not fit the message, or was made with another key")
	errOrder  = errors.New("the token has another sequence number than is due: a message is missing, out of order, or repeated")
	errClosed = errors.New("the session is closed")
)

// Seal encrypts data in place and writes the wrap token, SealLength octets, which goes beside it.
func (s *Session) Seal(token, before, data, after []byte) error {
	return s.sealAs(byAcceptor|isSealed|withSubkey, token, before, data, after)
}

func (s *Session) sealAs(flags byte, token, before, data, after []byte) error {
	if len(token) != SealLength {
		return errToken
	}
	if s.ours.block == nil {
		return errClosed
	}
	var header [tokenHeader]byte
	putTokenHeader(header[:], wrapToken, flags, s.send)
	binary.BigEndian.PutUint16(header[4:], extraCount)
	s.send++
	n := aes.BlockSize + len(data) + extraCount + tokenHeader
	buf := make([]byte, n+macLength)
	rand.Read(buf[:aes.BlockSize])
	copy(buf[aes.BlockSize:], data)
	extra := buf[aes.BlockSize+len(data):][:extraCount]
	for i := range extra {
		extra[i] = 0xff
	}
	copy(buf[n-tokenHeader:], header[:])
	mac := hmacOf(s.ours.seal, buf[:aes.BlockSize], before, data, after, buf[aes.BlockSize+len(data):n])
	encryptCTS(s.ours.block, buf[:n])
	copy(buf[n:], mac)
	binary.BigEndian.PutUint16(header[6:], rightRotation)
	// The token's end comes first: rotated right by RRC and EC.
	cut := len(buf) - rightRotation - extraCount
	k := copy(token, header[:])
	k += copy(token[k:], buf[cut:])
	copy(token[k:], buf[:aes.BlockSize])
	copy(data, buf[aes.BlockSize:cut])
	return nil
}

// Unseal decrypts data in place. It checks that the message is whole, from the client, and the next one.
func (s *Session) Unseal(token, before, data, after []byte) error {
	if s.theirs.block == nil {
		return errClosed
	}
	if err := checkTokenHeader(token, wrapToken, isSealed|withSubkey); err != nil {
		return err
	}
	extra := int(binary.BigEndian.Uint16(token[4:]))
	if rotation := binary.BigEndian.Uint16(token[6:]); rotation != rightRotation || len(token) != tokenHeader+aes.BlockSize+rightRotation+extra {
		return errToken
	}
	buf := make([]byte, 0, len(token)-tokenHeader+len(data))
	moved := tokenHeader + rightRotation + extra
	buf = append(append(append(buf, token[moved:]...), data...), token[tokenHeader:moved]...)
	n := len(buf) - macLength
	plain, mac := buf[:n], buf[n:]
	decryptCTS(s.theirs.block, plain)
	defer clear(plain)
	inside := plain[aes.BlockSize:][:len(data)]
	want := hmacOf(s.theirs.seal, plain[:aes.BlockSize], before, inside, after, plain[aes.BlockSize+len(data):])
	if !hmac.Equal(mac, want) {
		return errMAC
	}
	header := [tokenHeader]byte(token)
	header[6], header[7] = 0, 0
	if subtle.ConstantTimeCompare(plain[n-tokenHeader:], header[:]) != 1 {
		return errMAC
	}
	if err := s.inOrder(token); err != nil {
		return err
	}
	copy(data, inside)
	return nil
}

// Sign returns the MIC token of a message.
func (s *Session) Sign(parts ...[]byte) ([]byte, error) {
	if s.ours.block == nil {
		return nil, errClosed
	}
	token := make([]byte, tokenHeader, SignLength)
	putTokenHeader(token, micToken, byAcceptor|withSubkey, s.send)
	s.send++
	return append(token, hmacOf(s.ours.sign, append(parts, token)...)...), nil
}

// Verify checks a MIC token, and that the message is the next one.
func (s *Session) Verify(token []byte, parts ...[]byte) error {
	if err := s.checkMIC(token, parts...); err != nil {
		return err
	}
	return s.inOrder(token)
}

// checkMIC checks a MIC token but its sequence number, about which clients do not agree in a mechListMIC.
func (s *Session) checkMIC(token []byte, parts ...[]byte) error {
	if s.theirs.block == nil {
		return errClosed
	}
	if err := checkTokenHeader(token, micToken, withSubkey); err != nil {
		return err
	}
	if len(token) != SignLength {
		return errToken
	}
	if !hmac.Equal(token[tokenHeader:], hmacOf(s.theirs.sign, append(slices.Clip(parts), token[:tokenHeader])...)) {
		return errMAC
	}
	return nil
}

// inOrder lets every number through once, in order. Clients begin with the number of their AP-REQ, with the next one where a
// mechListMIC took that, or with 0 or 1; keys are new with each session, so that none of these can be of an older one.
func (s *Session) inOrder(token []byte) error {
	number := binary.BigEndian.Uint64(token[8:])
	if !s.based {
		if first := uint64(s.first); number != first && number != first+1 && number != 0 && number != 1 {
			return errOrder
		}
		s.based, s.next = true, number
	}
	if number != s.next {
		return errOrder
	}
	s.next++
	return nil
}

// Token identifiers (RFC 4121 4.2.6).
const (
	micToken  = 0x0404
	wrapToken = 0x0504
)

func putTokenHeader(b []byte, id uint16, flags byte, number uint64) {
	binary.BigEndian.PutUint16(b, id)
	b[2] = flags
	for i := 3; i < 8; i++ {
		b[i] = 0xff
	}
	if id == wrapToken {
		clear(b[4:8]) // EC and RRC
	}
	binary.BigEndian.PutUint64(b[8:], number)
}

func checkTokenHeader(token []byte, id uint16, flags byte) error {
	if len(token) < tokenHeader || binary.BigEndian.Uint16(token) != id || token[2] != flags || token[3] != 0xff {
		return errToken
	}
	if id == micToken && binary.BigEndian.Uint32(token[4:]) != 0xffffffff {
		return errToken
	}
	return nil
}

func hmacOf(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha1.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)[:macLength]
}

// encryptCTS is AES in CBC mode with ciphertext stealing and an initial vector of zeros (RFC 3962 5), in place. b is longer
// than one block.
func encryptCTS(block cipher.Block, b []byte) {
	var last [aes.BlockSize]byte
	tail := (len(b)-1)%aes.BlockSize + 1 // octets in the last block
	whole := len(b) - tail
	mode := cipher.NewCBCEncrypter(block, make([]byte, aes.BlockSize))
	mode.CryptBlocks(b[:whole], b[:whole])
	copy(last[:], b[whole:])
	mode.CryptBlocks(last[:], last[:])
	copy(b[whole:], b[whole-aes.BlockSize : whole][:tail])
	copy(b[whole-aes.BlockSize:], last[:])
}

// decryptCTS undoes encryptCTS.
func decryptCTS(block cipher.Block, b []byte) {
	var last, before [aes.BlockSize]byte
	tail := (len(b)-1)%aes.BlockSize + 1
	whole := len(b) - tail
	block.Decrypt(last[:], b[whole-aes.BlockSize:whole])
	copy(before[:], last[:])
	copy(before[:], b[whole:])
	for i := range tail {
		last[i] ^= b[whole+i]
	}
	copy(b[whole-aes.BlockSize:], before[:])
	mode := cipher.NewCBCDecrypter(block, make([]byte, aes.BlockSize))
	mode.CryptBlocks(b[:whole], b[:whole])
	copy(b[whole:], last[:tail])
}
