package templates

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"

	"github.com/enrollgate/enrollgate/templates/security"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Proof is a certificate whose key has signed the request.
type Proof struct {
	Certificate *x509.Certificate
	Owner       security.SID // the account that it was issued to; only where Distrust is nil
	// Distrust tells why the certificate proves nothing but possession of its key; nil where a CA served here has issued
	// it, it is in date and it is not revoked.
	Distrust error
}

// applicationPolicies are the purposes of the certificate: its application policies, or else its extended key usages.
func (p *Proof) applicationPolicies() []string {
	if list := policiesOf(p.Certificate, oidAppPolicies); list != nil {
		return list
	}
	for _, e := range p.Certificate.Extensions {
		if e.Id.String() == oidEKU {
			var list []asn1.ObjectIdentifier
			if rest, err := asn1.Unmarshal(e.Value, &list); err == nil && len(rest) == 0 {
				return texts(list)
			}
		}
	}
	return nil
}

func (p *Proof) issuancePolicies() []string { return policiesOf(p.Certificate, oidCertPolicies) }

// policiesOf reads the policies in an extension of a certificate; nil where it has none that can be read.
func policiesOf(cert *x509.Certificate, oid string) []string {
	for _, e := range cert.Extensions {
		if e.Id.String() == oid {
			list, _ := ReadOIDs(e.Value)
			return list
		}
	}
	return nil
}

// ReadOIDs reads the OIDs of a SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, … }, as certificate policies (RFC 5280 4.2.1.4),
// application policies and S/MIME capabilities (RFC 8551 2.5.2) are, without what follows them.
func ReadOIDs(der []byte) ([]string, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return nil, false
	}
	var out []string
	for !list.Empty() {
		var item cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&item, cbasn1.SEQUENCE) || !item.ReadASN1ObjectIdentifier(&oid) {
			return nil, false
		}
		out = append(out, oid.String())
	}
	return out, true
}

func texts(oids []asn1.ObjectIdentifier) []string {
	out := make([]string, len(oids))
	for i, o := range oids {
		out[i] = o.String()
	}
	return out
}

// extension returns the value of a requested extension, or nil.
func extension(list []Extension, oid string) []byte {
	for _, e := range list {
		if e.OID == oid {
			return e.Value
		}
	}
	return nil
}

// sanOf is the value of the certificate's subject alternative name, or nil.
func sanOf(cert *x509.Certificate) []byte {
	for _, e := range cert.Extensions {
		if e.Id.String() == oidSAN {
			return e.Value
		}
	}
	return nil
}

// emptyName tells whether a DER Name has no attributes.
func emptyName(der []byte) bool { return len(der) == 0 || bytes.Equal(der, []byte{0x30, 0x00}) }
