package ejbca

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/names"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// attributes are what EJBCA calls the attributes of a subject.
var attributes = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SURNAME", "2.5.4.5": "SN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.9": "STREET", "2.5.4.10": "O", "2.5.4.11": "OU",
	"2.5.4.12": "T", "2.5.4.15": "BUSINESSCATEGORY", "2.5.4.17": "POSTALCODE", "2.5.4.20": "TELEPHONENUMBER", "2.5.4.42": "GIVENNAME", "2.5.4.43": "INITIALS",
	"2.5.4.46": "DN", "2.5.4.65": "PSEUDONYM", "2.5.4.97": "ORGANIZATIONIDENTIFIER", "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
	"1.2.840.113549.1.9.1": "E",
}

// subjectText writes a Name as EJBCA reads it: RFC 4514, the last RDN of the encoding first.
func subjectText(der []byte) (string, error) {
	list, err := names.Subject(der)
	if err != nil {
		return "", err
	}
	var parts []string
	for _, a := range slices.Backward(list) {
		name, ok := attributes[a.OID]
		if !ok {
			return "", fmt.Errorf("subject: EJBCA has no name for the attribute %s", a.OID)
		}
		if strings.ContainsFunc(a.Text, func(r rune) bool { return r < ' ' }) {
			return "", fmt.Errorf("subject: the attribute %s has a control character", name)
		}
		parts = append(parts, name+"="+dn.Escape(a.Text))
	}
	return strings.Join(parts, ","), nil
}

// oidGUID is the kind of a domain controller's other name.
const oidGUID = "1.3.6.1.4.1.311.25.1"

// alternativeText writes alternative names as EJBCA reads them.
func alternativeText(der []byte) (string, error) {
	list, err := names.Alternative(der)
	if err != nil {
		return "", err
	}
	words := map[names.Kind]string{names.Email: "rfc822name", names.DNS: "dNSName", names.URI: "uniformResourceIdentifier", names.IP: "iPAddress"}
	var parts []string
	for _, n := range list {
		word, text := words[n.Kind], n.Text
		switch {
		case n.Kind == names.Other && n.OID == names.OIDUPN && text != "":
			word = "upn"
		case n.Kind == names.Other && n.OID == oidGUID && len(n.DER) == 18 && n.DER[0] == 0x04:
			word, text = "guid", hex.EncodeToString(n.DER[2:])
		case word == "":
			return "", fmt.Errorf("EJBCA has no name for an alternative name of the kind %s", n.OID)
		}
		parts = append(parts, word+"="+dn.Escape(text))
	}
	return strings.Join(parts, ","), nil
}

// profiled are extensions that only certificate profiles have.
var profiled = []string{wcce.OIDKeyUsage, wcce.OIDEKU, "2.5.29.32"}

// entity is the end entity of an order, without its name and password.
func (ca *CA) entity(order upstream.Order) (map[string]any, error) {
	p := order.Profile
	subject, err := subjectText(p.Subject)
	if err != nil {
		return nil, err
	}
	e := map[string]any{"subject_dn": subject, "ca_name": ca.o.CA, "certificate_profile_name": ca.o.CertificateProfile, "end_entity_profile_name": ca.o.EndEntityProfile,
		"token": "USERGENERATED"}
	data := []map[string]string{}
	if !ca.o.NoEnd {
		data = append(data, map[string]string{"name": "customdata_ENDTIME", "value": p.NotAfter.UTC().Format("2006-01-02 15:04:05+00:00")})
	}
	for _, x := range p.Extensions {
		switch {
		case x.OID == wcce.OIDSAN:
			if e["subject_alt_name"], err = alternativeText(x.Value); err != nil {
				return nil, err
			}
		case slices.Contains(ca.o.Extensions, x.OID):
			data = append(data, map[string]string{"name": x.OID, "value": hex.EncodeToString(x.Value)})
		case !slices.Contains(slices.Concat(profiled, ca.o.FromProfile, ca.o.Tolerance.Missing, ca.o.Tolerance.Changed), x.OID):
			return nil, fmt.Errorf("the extension %s is none that EJBCA is told of: define it there as a custom extension and name it in the configuration (extensions), "+
				"or where certificates may be without it, say so (tolerate.missing)", x.OID)
		}
	}
	e["extension_data"] = data
	return e, nil
}

// certificateAnswer is a certificate in EJBCA's JSON.
type certificateAnswer struct {
	Certificate string   `json:"certificate"`
	Chain       []string `json:"certificate_chain"`
}

func (a certificateAnswer) read() (*x509.Certificate, []*x509.Certificate, error) {
	cert, err := decodeCertificate(a.Certificate)
	if err != nil {
		return nil, nil, err
	}
	var above []*x509.Certificate
	if len(a.Chain) > 16 {
		return nil, nil, errors.New("the chain has more than 16 certificates")
	}
	for _, text := range a.Chain {
		c, err := decodeCertificate(text)
		if err != nil {
			return nil, nil, err
		}
		above = append(above, c)
	}
	return cert, above, nil
}

// decodeCertificate reads base64 of DER, or base64 of base64 of it: a search answers with the latter, because EJBCA stores base64.
func decodeCertificate(text string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("a certificate is not base64: %w", err)
	}
	if !bytes.HasPrefix(der, []byte{0x30}) || len(der) > 1 && der[1] < 0x80 { // a certificate has more than 127 octets
		if der, err = base64.StdEncoding.DecodeString(string(der)); err != nil {
			return nil, fmt.Errorf("a certificate is neither DER nor base64: %w", err)
		}
	}
	return x509.ParseCertificate(der)
}

// parseBundle reads the certificates of a CA, which have lines of text before them.
func parseBundle(text []byte) ([]*x509.Certificate, error) {
	var clean []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		clean = append(clean, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	list, err := chain.ParsePEM(clean)
	if err == nil && len(list) == 0 {
		err = errors.New("EJBCA named no certificate of the CA")
	}
	return list, err
}

func inPEM(csr []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
}
