// Package lint looks at a certificate as it would be signed, before it is: the rules of the X.509 RFCs as zlint has them,
// and rules of its own for the extensions that only Microsoft defines.
//
// The rules of the CA/Browser Forum are left out: they are for publicly trusted certificates, and would refuse what every
// Windows template asks for.
package lint

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	zcrypto "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/rfc" // registers the rules
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Finding is something that a rule has to say about a certificate.
type Finding struct {
	Rule     string `json:"rule"`  // such as e_ext_san_empty_name; those starting with ms_ are this package's
	Error    bool   `json:"error"` // the certificate must not be signed; else a warning
	Text     string `json:"text"`
	Citation string `json:"citation,omitempty"` // "RFC 5280: 4.2.1.6"
}

// usual are rules that what Windows forests ordinarily have breaks: they warn.
var usual = []string{
	"e_key_usage_and_extended_key_usage_inconsistent", // templates for client authentication have keyEncipherment, too
}

// Linter applies the rules. It is safe for concurrent use.
type Linter struct {
	rules  []*lint.CertificateLint
	config lint.Configuration
	accept map[string]bool
}

// New returns a linter that reports the rules in accept as warnings only. A rule that does not exist is an error.
func New(accept []string) (*Linter, error) {
	l := &Linter{rules: lint.GlobalRegistry().CertificateLints().Lints(), config: lint.NewEmptyConfig(), accept: map[string]bool{}}
	slices.SortFunc(l.rules, func(a, b *lint.CertificateLint) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range append(slices.Clone(usual), accept...) {
		if !slices.ContainsFunc(l.rules, func(r *lint.CertificateLint) bool { return r.Name == name }) &&
			!slices.ContainsFunc(microsoft, func(r rule) bool { return r.name == name }) {
			return nil, fmt.Errorf("there is no certificate rule %q", name)
		}
		l.accept[name] = true
	}
	return l, nil
}

// Check returns what the rules say about the certificate that the profile describes, errors first. key is the public key
// that it would bind.
func (l *Linter) Check(profile *templates.CertificateProfile, key crypto.PublicKey) []Finding {
	der, err := preview(profile, key)
	if err != nil {
		return []Finding{{Rule: "e_not_encodable", Error: true, Text: err.Error()}}
	}
	cert, err := zcrypto.ParseCertificate(der)
	if err != nil {
		return []Finding{{Rule: "e_not_parsable", Error: true, Text: err.Error()}}
	}
	var found []Finding
	for _, r := range l.rules {
		result := r.Execute(cert, l.config)
		if result.Status < lint.Warn {
			continue
		}
		text := r.Description
		if result.Details != "" {
			text += ": " + result.Details
		}
		found = append(found, Finding{Rule: r.Name, Error: result.Status >= lint.Error && !l.accept[r.Name], Text: text, Citation: r.Citation})
	}
	extensions := map[string]templates.Extension{}
	for _, e := range profile.Extensions {
		extensions[e.OID] = e
	}
	for _, r := range microsoft {
		if text := r.check(extensions); text != "" {
			found = append(found, Finding{Rule: r.name, Error: !l.accept[r.name], Text: text, Citation: r.citation})
		}
	}
	slices.SortStableFunc(found, func(a, b Finding) int {
		switch {
		case a.Error == b.Error:
			return 0
		case a.Error:
			return -1
		}
		return 1
	})
	return found
}

// preview encodes the certificate, under an issuer and a signature that only have the right form, so that it costs no
// cryptography. What only the CA adds is there as RFC 5280 wants it, so that no rule stumbles over it.
func preview(p *templates.CertificateProfile, key crypto.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	extensions := []pkix.Extension{subjectKeyID, authorityKeyID}
	if !p.NoRevocationInfo {
		extensions = append(extensions, distributionPoints)
	}
	for _, e := range p.Extensions {
		x, err := e.X509()
		if err != nil {
			return nil, err
		}
		extensions = append(extensions, x)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // TBSCertificate (RFC 5280 4.1)
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) })
			b.AddASN1BigInt(new(big.Int).Lsh(big.NewInt(1), 120))
			b.AddBytes(signatureAlgorithm)
			b.AddBytes(issuer)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addTime(b, p.NotBefore.UTC())
				addTime(b, p.NotAfter.UTC())
			})
			if len(p.Subject) == 0 {
				b.AddBytes([]byte{0x30, 0x00})
			}
			b.AddBytes(p.Subject)
			b.AddBytes(spki)
			b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, e := range extensions {
						addExtension(b, e)
					}
				})
			})
		})
		b.AddBytes(signatureAlgorithm)
		b.AddASN1BitString(make([]byte, 64))
	})
	return b.Bytes()
}

func addTime(b *cryptobyte.Builder, t time.Time) {
	if t.Year() < 2050 { // RFC 5280 4.1.2.5
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

func addExtension(b *cryptobyte.Builder, e pkix.Extension) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(e.Id)
		if e.Critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1OctetString(e.Value)
	})
}

// What only the CA knows, in the right form.
var (
	signatureAlgorithm = []byte{0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}                 // ecdsa-with-SHA256
	issuer             = []byte{0x30, 0x0d, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x02, 'C', 'A'} // CN=CA
	subjectKeyID       = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Value: append([]byte{0x04, 20}, make([]byte, 20)...)}
	authorityKeyID     = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 35}, Value: append([]byte{0x30, 22, 0x80, 20}, make([]byte, 20)...)}
	distributionPoints = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 31},
		Value: append([]byte{0x30, 0x12, 0x30, 0x10, 0xa0, 0x0e, 0xa0, 0x0c, 0x86, 0x0a}, "http://c.l"...)}
)
