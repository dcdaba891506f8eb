package gateway

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
)

func equalFold(a, b string) bool { return strings.EqualFold(a, b) }

// ownedByCA are extensions that only the CA can know.
var ownedByCA = []string{
	"2.5.29.14", // subject key identifier
	"2.5.29.35", // authority key identifier
	"2.5.29.31", // CRL distribution points
	"1.3.6.1.5.5.7.1.1",
	"1.3.6.1.4.1.11129.2.4.2", // signed certificate timestamps
}

// compare checks a certificate against the decision: the requested key, the decided names and extensions, no others, and
// a validity within the decided one.
func compare(order upstream.Order, cert *x509.Certificate) error {
	if cert == nil {
		return errors.New("there is no certificate")
	}
	p := order.Profile
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	subject := p.Subject
	if len(subject) == 0 {
		subject = []byte{0x30, 0x00}
	}
	switch {
	case !ok || !key.Equal(order.PublicKey):
		return errors.New("the public key is not that of the request")
	case !bytes.Equal(cert.RawSubject, subject):
		return fmt.Errorf("the subject is %q, decided was %q", dn.Show(cert.RawSubject), p.SubjectText)
	case cert.NotAfter.After(p.NotAfter.Add(time.Minute)):
		return fmt.Errorf("it ends at %s, decided was %s", cert.NotAfter.UTC().Format(time.RFC3339), p.NotAfter.UTC().Format(time.RFC3339))
	case cert.IsCA:
		return errors.New("it is a CA certificate")
	}
	found := map[string]bool{}
	for _, e := range cert.Extensions {
		oid := e.Id.String()
		i := slices.IndexFunc(p.Extensions, func(d templates.Extension) bool { return d.OID == oid })
		switch {
		case i >= 0 && (!bytes.Equal(p.Extensions[i].Value, e.Value) || p.Extensions[i].Critical != e.Critical):
			return fmt.Errorf("extension %s differs", oid)
		case i < 0 && !slices.Contains(ownedByCA, oid):
			return fmt.Errorf("extension %s was not decided", oid)
		}
		found[oid] = true
	}
	for _, d := range p.Extensions {
		if !found[d.OID] {
			return fmt.Errorf("extension %s is missing", d.OID)
		}
	}
	return nil
}
