package hvca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/names"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// attributes are what HVCA calls the attributes of a subject that can be there once.
var attributes = map[string]string{
	"2.5.4.3": "common_name", "2.5.4.4": "surname", "2.5.4.5": "serial_number", "2.5.4.6": "country", "2.5.4.7": "locality", "2.5.4.8": "state", "2.5.4.9": "street_address",
	"2.5.4.10": "organization", "2.5.4.15": "business_category", "2.5.4.17": "postal_code", "2.5.4.42": "given_name", "2.5.4.97": "organization_identifier",
	"1.2.840.113549.1.9.1": "email",
}

const (
	oidUnit     = "2.5.4.11"
	oidTemplate = "1.3.6.1.4.1.311.21.7" // template information ([MS-WCCE] 2.2.2.7.7.2)
	oidPolicies = "2.5.29.32"
)

type typed struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// words are what is decided, as HVCA has it, without validity and key.
func (ca *CA) words(order upstream.Order) (map[string]any, error) {
	body := map[string]any{}
	subject, err := subjectWords(order.Profile.Subject)
	if err != nil {
		return nil, err
	}
	if len(subject) > 0 {
		body["subject_dn"] = subject
	}
	custom := map[string]string{}
	for _, e := range order.Profile.Extensions {
		switch {
		case e.OID == wcce.OIDSAN:
			body["san"], err = alternativeWords(e.Value)
		case e.OID == wcce.OIDEKU:
			body["extended_key_usages"], err = purposes(e.Value)
		case e.OID == wcce.OIDKeyUsage || e.OID == oidPolicies || slices.Contains(ca.o.FromProfile, e.OID): // the account's
		case slices.Contains(ca.o.Extensions, e.OID):
			if e.OID == oidTemplate {
				body["ms_extension_template"], err = templateWords(e.Value)
			} else {
				custom[e.OID], err = customWord(e.OID, e.Value)
			}
		case !slices.Contains(ca.o.Tolerance.Missing, e.OID) && !slices.Contains(ca.o.Tolerance.Changed, e.OID):
			err = fmt.Errorf("the extension %s is none that the account is told of: if the validation policy has it, name it in the configuration (extensions); "+
				"where certificates may be without it, say so (tolerate.missing)", e.OID)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(custom) > 0 {
		body["custom_extensions"] = custom
	}
	return body, nil
}

func subjectWords(der []byte) (map[string]any, error) {
	list, err := names.Subject(der)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	var units []string
	var extra []typed
	for _, a := range list {
		name, ok := attributes[a.OID]
		switch {
		case a.OID == oidUnit:
			units = append(units, a.Text)
		case ok && out[name] == nil:
			out[name] = a.Text
		default:
			extra = append(extra, typed{a.OID, a.Text})
		}
	}
	if units != nil {
		out["organizational_unit"] = units
	}
	if extra != nil {
		out["extra_attributes"] = extra
	}
	return out, nil
}

func alternativeWords(der []byte) (map[string]any, error) {
	list, err := names.Alternative(der)
	if err != nil {
		return nil, err
	}
	words := map[names.Kind]string{names.Email: "emails", names.DNS: "dns_names", names.URI: "uris", names.IP: "ip_addresses"}
	texts := map[string][]string{}
	out := map[string]any{}
	var others []typed
	for _, n := range list {
		if n.Kind == names.Other {
			if n.Text == "" {
				return nil, fmt.Errorf("the other name of kind %s is not text (UTF8String)", n.OID)
			}
			others = append(others, typed{n.OID, n.Text})
			continue
		}
		texts[words[n.Kind]] = append(texts[words[n.Kind]], n.Text)
	}
	for word, list := range texts {
		out[word] = list
	}
	if others != nil {
		out["other_names"] = others
	}
	return out, nil
}

// purposes reads the object identifiers of an extKeyUsage extension.
func purposes(der []byte) (out []string, err error) {
	var oids []asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(der, &oids); err != nil || len(rest) > 0 {
		return nil, errors.New("the extended key usage is malformed")
	}
	for _, oid := range oids {
		out = append(out, oid.String())
	}
	return out, nil
}

func templateWords(der []byte) (map[string]any, error) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	var major, minor int64
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1Integer(&major) ||
		!seq.Empty() && !seq.ReadASN1Integer(&minor) || !seq.Empty() {
		return nil, errors.New("the template information is malformed, or has no version")
	}
	return map[string]any{"id": oid.String(), "major_version": major, "minor_version": minor}, nil
}

// customWord is the value of a custom extension: what is text, an integer or nothing in DER.
func customWord(oid string, der []byte) (string, error) {
	if bytes.Equal(der, []byte{0x05, 0x00}) {
		return "NIL", nil
	}
	var value any
	if rest, err := asn1.Unmarshal(der, &value); err == nil && len(rest) == 0 {
		switch v := value.(type) {
		case string:
			return v, nil
		case int64:
			return fmt.Sprint(v), nil
		}
	}
	return "", fmt.Errorf("the extension %s is neither text nor an integer, and HVCA takes no others", oid)
}

// policy is what is read of the account's validation policy.
type policy struct {
	Validity struct {
		Skew int64 `json:"not_before_negative_skew"`
	} `json:"validity"`
	PublicKey struct {
		Format string `json:"key_format"`
	} `json:"public_key"`
	KeySignature string `json:"public_key_signature"`
}

// policyAge is for how long a policy is used without reading it again.
const policyAge = 10 * time.Minute

func (ca *CA) policy(ctx context.Context) (*policy, error) {
	ca.mu.Lock()
	p, read := ca.rules, ca.read
	ca.mu.Unlock()
	fresh := p != nil && ca.o.Now().Sub(read) < policyAge
	if !fresh {
		a, err := ca.call(ctx, http.MethodGet, "/validationpolicy", nil)
		if err != nil {
			return nil, fmt.Errorf("read the validation policy: %w", err)
		}
		p = &policy{}
		if err := json.Unmarshal(a.Body, p); err != nil {
			return nil, fmt.Errorf("read the validation policy: %w", err)
		}
	}
	format := strings.ToUpper(p.PublicKey.Format)
	switch {
	case ca.o.PublicKey && (format != "PKCS8" || strings.EqualFold(p.KeySignature, "REQUIRED")):
		return nil, fmt.Errorf("the validation policy wants the key as %s, signature %s; the configuration says that it takes a bare public key without a signature", format, p.KeySignature)
	case !ca.o.PublicKey && format != "PKCS10":
		return nil, fmt.Errorf("the validation policy wants the key as %q and not as PKCS10: let GlobalSign change it, or, if it demands no signature, configure public_key: bare", format)
	}
	if !fresh {
		ca.mu.Lock()
		ca.rules, ca.read = p, ca.o.Now()
		ca.mu.Unlock()
	}
	return p, nil
}

// body is the whole request.
func (ca *CA) body(ctx context.Context, order upstream.Order) (map[string]any, error) {
	p, err := ca.policy(ctx)
	if err != nil {
		return nil, err
	}
	body, err := ca.words(order)
	if err != nil {
		return nil, err
	}
	from := order.Profile.NotBefore
	if earliest := ca.o.Now().Add(-time.Duration(min(max(p.Validity.Skew, 0), 86400)) * time.Second); from.Before(earliest) {
		from = earliest
	}
	body["validity"] = map[string]int64{"not_before": from.Unix(), "not_after": order.Profile.NotAfter.Unix()}
	block := &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: order.CSR}
	if ca.o.PublicKey {
		spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
		if err != nil {
			return nil, err
		}
		block = &pem.Block{Type: "PUBLIC KEY", Bytes: spki}
	}
	body["public_key"] = strings.TrimSpace(string(pem.EncodeToMemory(block)))
	return body, nil
}
