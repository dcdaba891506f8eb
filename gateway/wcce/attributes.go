package wcce

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What a request says beside the PKCS#10 fields: name/value pairs, and the template, which may stand in four places.

// readRegInfo reads "name=value&name=value" ([MS-WCCE] 2.2.2.6.3).
func (r *Request) readRegInfo(der []byte) error {
	s := cryptobyte.String(der)
	var text cryptobyte.String
	if !s.ReadASN1(&text, cbasn1.OCTET_STRING) || !s.Empty() {
		return errors.New("registration information is not an octet string")
	}
	for item := range strings.SplitSeq(string(text), "&") {
		if name, value, ok := strings.Cut(item, "="); ok && len(r.Values) < maxAttributes {
			if v, err := url.QueryUnescape(value); err == nil {
				value = v
			}
			r.Values = append(r.Values, NameValue{strings.TrimSpace(name), value})
			if err := r.nameRequestor(r.Values[len(r.Values)-1:]); err != nil {
				return err
			}
		}
	}
	return nil
}

const requestorName = "requestername"

// nameRequestor takes the account that an enrollment agent enrolls from where the agent signs it: the registration
// information in CMC, a signed attribute of the first signer in PKCS#7 ([MS-WCCE] 3.2.2.6.2.1.2.1).
func (r *Request) nameRequestor(values []NameValue) error {
	for _, v := range values {
		if !strings.EqualFold(v.Name, requestorName) {
			continue
		}
		if r.RequestorName != "" && r.RequestorName != v.Value || v.Value == "" {
			return fmt.Errorf("the request is on behalf of %q and %q", r.RequestorName, v.Value)
		}
		r.RequestorName = v.Value
	}
	return nil
}

// readRequestor reads the signed attribute, and refuses a name that stands where nobody looks for it.
func (r *Request) readRequestor(sd *SignedData) error {
	if sd != nil && r.Format == PKCS7 {
		for _, a := range sd.Signers[0].SignedAttrs {
			if a.OID != OIDNameValuePair {
				continue
			}
			for _, v := range a.Values {
				pairs, err := readNameValuePair(v)
				if err == nil {
					err = r.nameRequestor(pairs)
				}
				if err != nil {
					return invalid(err, "signed attributes")
				}
			}
		}
	}
	if name := r.Value(requestorName); name != "" && name != r.RequestorName {
		return invalid(nil, "the request names the account %q that it is for outside of what an enrollment agent signs", name)
	}
	return nil
}

// readNameValuePair reads one pair, or a sequence of pairs: the specification says the second, Windows writes the first.
func readNameValuePair(der []byte) ([]NameValue, error) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("malformed name/value pair")
	}
	var out []NameValue
	for !seq.Empty() {
		pair := &seq
		var inner cryptobyte.String
		if seq.PeekASN1Tag(cbasn1.SEQUENCE) {
			if !seq.ReadASN1(&inner, cbasn1.SEQUENCE) {
				return nil, errors.New("malformed name/value pair")
			}
			pair = &inner
		}
		var name, value cryptobyte.String
		if len(out) == maxAttributes || !pair.ReadASN1(&name, tagBMP) || !pair.ReadASN1(&value, tagBMP) || !pair.Empty() {
			return nil, errors.New("malformed name/value pair")
		}
		out = append(out, NameValue{decodeBMP(name), decodeBMP(value)})
	}
	return out, nil
}

const tagBMP = cbasn1.Tag(30)

func decodeBMP(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		units = append(units, uint16(b[i])<<8|uint16(b[i+1]))
	}
	return string(utf16.Decode(units))
}

// readTemplate gathers the template from the places where a request may name it; they must agree
// ([MS-WCCE] 3.2.2.6.2.1.4.1).
func (r *Request) readTemplate() error {
	for _, e := range r.CSR.Extensions {
		switch e.OID {
		case OIDTemplateName:
			name, err := readTemplateName(e.Value)
			if err != nil {
				return invalid(err, "the request's template name")
			}
			if err := r.NameTemplate(name); err != nil {
				return err
			}
		case OIDTemplateInfo:
			if err := r.Template.readInfo(e.Value); err != nil {
				return invalid(err, "the request's template information")
			}
		}
	}
	for _, v := range r.Values {
		if strings.EqualFold(v.Name, "CertificateTemplate") {
			if err := r.NameTemplate(v.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// NameTemplate records a template name that came beside the request and refuses a second, different one.
func (r *Request) NameTemplate(name string) error {
	if r.Template.Name != "" && !strings.EqualFold(r.Template.Name, name) {
		return hresult.New(hresult.TemplateConflict, "the request names two templates, %q and %q", r.Template.Name, name)
	}
	r.Template.Name = name
	return nil
}

// readTemplateName reads a BMPString or UTF8String, as Windows writes it, or a sequence around one, as the specification
// says ([MS-WCCE] 2.2.2.7.7.1).
func readTemplateName(der []byte) (string, error) {
	s := cryptobyte.String(der)
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&value, &tag) || !s.Empty() {
		return "", errors.New("malformed")
	}
	if tag == cbasn1.SEQUENCE {
		inner := value
		if !inner.ReadAnyASN1(&value, &tag) || !inner.Empty() {
			return "", errors.New("malformed")
		}
	}
	switch tag {
	case tagBMP:
		return decodeBMP(value), nil
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String:
		return string(value), nil
	}
	return "", fmt.Errorf("string type %d", tag)
}

func (t *Template) readInfo(der []byte) error {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) {
		return errors.New("malformed")
	}
	if t.OID != "" && t.OID != oid.String() {
		return fmt.Errorf("two templates, %s and %s", t.OID, oid)
	}
	t.OID = oid.String()
	for _, v := range []*int{&t.Major, &t.Minor} {
		if seq.Empty() {
			return nil
		}
		if !seq.ReadASN1Integer(v) || *v < 0 {
			return errors.New("malformed version")
		}
	}
	if !seq.Empty() {
		return errors.New("malformed")
	}
	return nil
}

// CertificateTemplate is the template that a certificate's extensions name; an empty one where they name none.
func CertificateTemplate(cert *x509.Certificate) (t Template, err error) {
	for _, e := range cert.Extensions {
		switch e.Id.String() {
		case OIDTemplateName:
			t.Name, err = readTemplateName(e.Value)
		case OIDTemplateInfo:
			err = t.readInfo(e.Value)
		}
		if err != nil {
			return t, fmt.Errorf("the certificate's template: %w", err)
		}
	}
	return t, nil
}
