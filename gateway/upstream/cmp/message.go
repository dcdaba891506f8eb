package cmp

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The bodies of messages, by their tag (RFC 9810 5.1.2).
const (
	bodyCR       = 2
	bodyCP       = 3
	bodyP10CR    = 4
	bodyRR       = 11
	bodyRP       = 12
	bodyPKIConf  = 19
	bodyError    = 23
	bodyCertConf = 24
	bodyPollReq  = 25
	bodyPollRep  = 26
)

// bodyNames are for messages.
var bodyNames = map[int]string{
	0: "ir", 1: "ip", bodyCR: "cr", bodyCP: "cp", bodyP10CR: "p10cr", 7: "kur", 8: "kup", bodyRR: "rr", bodyRP: "rp", bodyPKIConf: "pkiconf", 20: "nested", 21: "genm",
	22: "genp", bodyError: "error", bodyCertConf: "certConf", bodyPollReq: "pollReq", bodyPollRep: "pollRep",
}

var (
	oidImplicitConfirm = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 4, 13} // RFC 9810 5.1.1.1
	oidReasonCode      = asn1.ObjectIdentifier{2, 5, 29, 21}
	emptyName          = []byte{0x30, 0x00}
)

// tagged is a constructed context tag.
func tagged(n int) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

// pvno is the version of our messages: cmp2000, which every CA takes; nothing here needs cmp2021.
const pvno = 2

// outgoing is a message to send.
type outgoing struct {
	transaction []byte
	recipNonce  []byte // the CA's last; empty in the first message
	body        int
	content     cryptobyte.BuilderContinuation
	implicit    bool // ask for a certificate that needs no confirmation
}

// marshal writes and protects a message (RFC 9810 5.1). It returns the nonce, which the answer has to repeat.
func (ca *CA) marshal(o outgoing) (der, nonce []byte, err error) {
	nonce = make([]byte, 16)
	rand.Read(nonce)
	protection, err := ca.protector()
	if err != nil {
		return nil, nil, err
	}
	var part cryptobyte.Builder
	part.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { ca.addHeader(b, &o, nonce, protection.algorithm) })
	part.AddASN1(tagged(o.body), o.content)
	content, err := part.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("write the %s message: %w", bodyNames[o.body], err)
	}
	value, err := protection.make(protectedPart(content))
	if err != nil {
		return nil, nil, fmt.Errorf("protect the %s message: %w", bodyNames[o.body], err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(content)
		b.AddASN1(tagged(0), func(b *cryptobyte.Builder) { b.AddASN1BitString(value) })
		if len(ca.o.Certificates) > 0 {
			b.AddASN1(tagged(1), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, c := range ca.o.Certificates {
						b.AddBytes(c.Raw)
					}
				})
			})
		}
	})
	der, err = b.Bytes()
	return der, nonce, err
}

// addHeader writes the fields of PKIHeader (RFC 9810 5.1.1).
func (ca *CA) addHeader(b *cryptobyte.Builder, o *outgoing, nonce, algorithm []byte) {
	b.AddASN1Int64(pvno)
	addDirectoryName(b, ca.sender)
	addDirectoryName(b, ca.recipient())
	b.AddASN1(tagged(0), func(b *cryptobyte.Builder) { addGeneralizedTime(b, ca.o.Now()) })
	b.AddASN1(tagged(1), func(b *cryptobyte.Builder) { b.AddBytes(algorithm) })
	octets := func(tag int, value []byte) {
		if len(value) > 0 {
			b.AddASN1(tagged(tag), func(b *cryptobyte.Builder) { b.AddASN1OctetString(value) })
		}
	}
	octets(2, ca.keyID)
	octets(4, o.transaction)
	octets(5, nonce)
	octets(6, o.recipNonce)
	if o.implicit {
		b.AddASN1(tagged(8), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidImplicitConfirm)
					b.AddASN1NULL()
				})
			})
		})
	}
}

// protectedPart is what protection is computed over: header and body in a sequence (RFC 9810 5.1.3).
func protectedPart(headerAndBody []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(headerAndBody) })
	return b.BytesOrPanic()
}

// addDirectoryName writes a GeneralName, directoryName [4].
func addDirectoryName(b *cryptobyte.Builder, name []byte) {
	b.AddASN1(tagged(4), func(b *cryptobyte.Builder) { b.AddBytes(name) })
}

func addGeneralizedTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1(cbasn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(t.UTC().Format("20060102150405Z"))) })
}

// addTime writes a Time as certificates have it (RFC 5280 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() >= 2050 {
		addGeneralizedTime(b, t)
		return
	}
	b.AddASN1(cbasn1.UTCTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(t.Format("060102150405Z"))) })
}

// certRequest is the content of cr: one CertReqMsg (RFC 4211 3) with everything that was decided, and the word of a registration
// authority in place of a proof of possession.
func certRequest(order upstream.Order) (cryptobyte.BuilderContinuation, error) {
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return nil, err
	}
	extensions, err := marshalExtensions(order)
	if err != nil {
		return nil, err
	}
	keyInfo := cryptobyte.String(spki)
	var key cryptobyte.String
	if !keyInfo.ReadASN1(&key, cbasn1.SEQUENCE) {
		return nil, fmt.Errorf("the public key is malformed")
	}
	p, subject := order.Profile, order.Profile.Subject
	if len(subject) == 0 {
		subject = emptyName
	}
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertReqMessages
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertReqMsg
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertRequest
					b.AddASN1Int64(0)
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertTemplate, with implicit tags
						b.AddASN1(tagged(4), func(b *cryptobyte.Builder) {
							b.AddASN1(tagged(0), func(b *cryptobyte.Builder) { addTime(b, p.NotBefore) })
							b.AddASN1(tagged(1), func(b *cryptobyte.Builder) { addTime(b, p.NotAfter) })
						})
						b.AddASN1(tagged(5), func(b *cryptobyte.Builder) { b.AddBytes(subject) })
						b.AddASN1(tagged(6), func(b *cryptobyte.Builder) { b.AddBytes(key) })
						if len(extensions) > 0 {
							b.AddASN1(tagged(9), func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
						}
					})
				})
				b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {}) // popo: raVerified
			})
		})
	}, nil
}

func marshalExtensions(order upstream.Order) ([]byte, error) {
	var b cryptobyte.Builder
	for _, e := range order.Profile.Extensions {
		x, err := e.X509()
		if err != nil {
			return nil, err
		}
		addExtension(&b, x.Id, x.Critical, x.Value)
	}
	return b.Bytes()
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1OctetString(value)
	})
}

// pollRequest is the content of pollReq (RFC 9810 5.3.22).
func pollRequest(reqID int64) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1Int64(reqID) })
		})
	}
}

// confirmation is the content of certConf (RFC 9810 5.3.18). refuse is why the certificate is not taken; "" takes it.
func confirmation(hash []byte, reqID int64, refuse string) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1OctetString(hash)
				b.AddASN1Int64(reqID)
				if refuse == "" {
					return
				}
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1Int64(statusRejection)
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(refuse)) })
					})
				})
			})
		})
	}
}

// revocation is the content of rr (RFC 9810 5.3.9): a certificate by issuer and serial number, and the reason.
func revocation(issuer []byte, serial *big.Int, reason int) cryptobyte.BuilderContinuation {
	var code cryptobyte.Builder
	code.AddASN1Enum(int64(reason))
	number := func(b *cryptobyte.Builder) { b.AddASN1BigInt(serial) }
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // CertTemplate
					b.AddASN1(cbasn1.Tag(1).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(valueOf(number)) })
					b.AddASN1(tagged(3), func(b *cryptobyte.Builder) { b.AddBytes(issuer) })
				})
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addExtension(b, oidReasonCode, false, code.BytesOrPanic()) })
			})
		})
	}
}

// valueOf are the octets of an element without its tag and length.
func valueOf(element cryptobyte.BuilderContinuation) []byte {
	var b cryptobyte.Builder
	element(&b)
	s := cryptobyte.String(b.BytesOrPanic())
	var value cryptobyte.String
	var tag cbasn1.Tag
	s.ReadAnyASN1(&value, &tag)
	return value
}
