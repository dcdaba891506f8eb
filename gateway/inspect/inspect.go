// Package inspect explains the messages of Windows certificate enrollment to a person: what a request asks for, who
// signed it, which template it names, whether its archived key opens and belongs to it, what a response says.
//
// Call Describe with the contents of a file; the Report goes to a program as JSON or to a person with Report.Text.
// Nothing is refused for being invalid: signatures that do not verify are shown as such. What the gateway would say to
// a request is in Report.Problem. Private keys are opened only to be compared, and wiped; no report holds one.
package inspect

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Kinds of message, as in Report.Kind.
const (
	KindPKCS10      = "pkcs10"
	KindPKCS7       = "pkcs7-request"
	KindCMC         = "cmc-request"
	KindResponse    = "cmc-response"
	KindCertsOnly   = "certs-only"
	KindRecovery    = "recovery-blob"
	KindEnveloped   = "enveloped-data"
	KindKeyBlob     = "key-blob"
	KindCertificate = "certificate"
)

// Report is what a message says. Fields that a kind does not have are empty.
type Report struct {
	Kind    string `json:"kind"`
	Input   string `json:"input"`             // how it was encoded: "DER", "PEM (label)", "base64", "SOAP"
	Problem string `json:"problem,omitempty"` // why a server would refuse it, or a client not believe it

	Subject            string     `json:"subject"` // RFC 4514
	PublicKey          *PublicKey `json:"public_key,omitempty"`
	SignatureAlgorithm string     `json:"signature_algorithm,omitempty"`
	// NullSignature: a bare hash stands in place of the PKCS#10 signature ([MS-WCCE] 2.2.2.6.5).
	NullSignature bool        `json:"null_signature"`
	Possession    *Possession `json:"proof_of_possession,omitempty"`
	Signers       []Signer    `json:"signers"`

	Template   *Template   `json:"template"`
	Attributes []Attribute `json:"attributes"`
	Extensions []Extension `json:"extensions"`

	ArchivedKey ArchivedKey  `json:"archived_key"`
	KeyBlobForm string       `json:"key_blob_form,omitempty"`
	Renewal     *Certificate `json:"renewal,omitempty"` // the certificate that a request renews

	Response    *Response     `json:"response,omitempty"`
	Certificate *Certificate  `json:"certificate,omitempty"` // issued, archived, or the input itself
	Chain       []Certificate `json:"chain,omitempty"`       // all other certificates that the message encloses
}

// PublicKey is the kind and size of a key.
type PublicKey struct {
	Algorithm string `json:"algorithm"` // "RSA", "P-256", "DSA"
	Bits      int    `json:"bits"`
}

// Possession is the signature inside a PKCS#10 request.
type Possession struct {
	Verified bool   `json:"verified"` // false for a null signature, which proves nothing
	Error    string `json:"error,omitempty"`
}

// Signer is one signature. Either KeyID or Issuer and Serial name the key.
type Signer struct {
	Role     string `json:"role"` // "subject key", "renewed certificate", "additional", "CA"
	KeyID    string `json:"key_id,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	Serial   string `json:"serial,omitempty"`
	Digest   string `json:"digest"`
	Verified bool   `json:"verified"`
	Error    string `json:"error,omitempty"`
}

// Template is how the message names a template. Major and Minor are nil where absent.
type Template struct {
	Name  string `json:"name,omitempty"`
	OID   string `json:"oid,omitempty"`
	Major *int   `json:"major,omitempty"`
	Minor *int   `json:"minor,omitempty"`
}

// Attribute is one value of an attribute.
type Attribute struct {
	OID   string `json:"oid"`
	Name  string `json:"name,omitempty"`
	Where string `json:"where"` // "pkcs10", "cmc control", "signed", "unsigned"
	Value string `json:"value"` // hexadecimal where nothing better is known
}

// Extension is one certificate extension, requested or present.
type Extension struct {
	OID      string `json:"oid"`
	Name     string `json:"name,omitempty"`
	Critical bool   `json:"critical"`
	Value    string `json:"value"`
}

// ArchivedKey is about a private key on its way into or out of escrow. Algorithm, Bits, Form and MatchesRequest are
// known only when it was opened.
type ArchivedKey struct {
	Present        bool   `json:"present"`
	Algorithm      string `json:"algorithm,omitempty"`
	Bits           int    `json:"bits,omitempty"`
	Form           string `json:"form,omitempty"`
	MatchesRequest *bool  `json:"matches_request,omitempty"` // in a recovery blob: matches the certificate
	HashValid      *bool  `json:"hash_valid,omitempty"`      // only requests have a hash

	Cipher     string      `json:"cipher,omitempty"`
	Recipients []Recipient `json:"recipients,omitempty"`
	Opened     bool        `json:"opened"`
	Error      string      `json:"error,omitempty"`
}

// Recipient is who can open an archived key.
type Recipient struct {
	KeyID     string `json:"key_id,omitempty"`
	Issuer    string `json:"issuer,omitempty"`
	Serial    string `json:"serial,omitempty"`
	Transport string `json:"key_transport"`
}

// Certificate is the outline of a certificate.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA1      string    `json:"sha1"` // the thumbprint by which Windows names it
}

// Response is what a CMC full response says.
type Response struct {
	Status    int    `json:"status"`
	State     string `json:"state"` // "issued", "denied", "pending"
	Text      string `json:"text"`
	RequestID string `json:"request_id,omitempty"`
	// CertificateHash is the SHA-1 of the issued certificate; HashValid, whether such a certificate is enclosed.
	CertificateHash string `json:"certificate_hash,omitempty"`
	HashValid       *bool  `json:"certificate_hash_valid,omitempty"`
	ArchivedHash    string `json:"archived_key_hash,omitempty"` // confirms what was archived
}

// Describe reads a request, a response, a certificate or a key blob, as DER, PEM, base64 text or inside a SOAP message.
// With exchangeKey, an archived key is opened with it and compared; for a recovery blob it is the recovery agent's key.
// An error says that the input is none of these.
func Describe(data []byte, exchangeKey crypto.Decrypter) (*Report, error) {
	der, input, err := decode(data)
	if err != nil {
		return nil, err
	}
	if len(der) > wcce.MaxMessage {
		return nil, fmt.Errorf("%s of %d octets, at most %d are read", input, len(der), wcce.MaxMessage)
	}
	r := &Report{Input: input, Signers: []Signer{}, Attributes: []Attribute{}, Extensions: []Extension{}}
	if err := r.describe(der, exchangeKey); err != nil {
		return nil, fmt.Errorf("%s: %w", input, err)
	}
	return r, nil
}

func (r *Report) describe(der []byte, key crypto.Decrypter) error {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
		return r.describeKeyBlob(der)
	}
	if !seq.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER) {
		return r.describePlain(der)
	}
	kind, _, err := wcce.ParseContentInfo(der)
	if err != nil {
		return err
	}
	switch kind {
	case wcce.OIDEnvelopedData:
		r.Kind = KindEnveloped
		if _, err := wcce.ParseEnveloped(der); err != nil {
			return err
		}
		r.describeArchived(der, key, nil)
		return nil
	case wcce.OIDSignedData:
		return r.describeSigned(der, key)
	}
	return fmt.Errorf("a CMS message of type %s; signedData and envelopedData are understood", named(kind))
}

// describePlain tells a PKCS#10 request from a certificate: no input is both.
func (r *Report) describePlain(der []byte) error {
	csr, csrErr := wcce.ParseCSR(der)
	if csrErr == nil {
		r.Kind = KindPKCS10
		r.describeCSR(csr, false)
		r.judgeRequest(der)
		return nil
	}
	if err := r.describeCertificate(der); err != nil {
		return fmt.Errorf("neither a PKCS#10 request (%w) nor a certificate (%w)", csrErr, err)
	}
	return nil
}

func (r *Report) describeKeyBlob(der []byte) error {
	blob, err := wcce.ParseKeyBlob(der)
	if err != nil {
		return fmt.Errorf("neither one DER sequence nor a private key blob (%w)", err)
	}
	defer blob.Wipe()
	r.Kind, r.KeyBlobForm = KindKeyBlob, blob.Form
	r.PublicKey = &PublicKey{Algorithm: blob.Algorithm, Bits: blob.Bits}
	return nil
}

// decode finds the octets in the text forms that people have at hand.
func decode(data []byte) (der []byte, input string, err error) {
	text := bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")))
	switch {
	case len(text) == 0:
		return nil, "", errors.New("the input is empty")
	case isSequence(data):
		return data, "DER", nil
	case bytes.HasPrefix(text, []byte("<")):
		return decodeSOAP(text)
	case bytes.Contains(text, []byte("-----BEGIN ")):
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, "", errors.New("PEM: malformed")
		}
		return block.Bytes, fmt.Sprintf("PEM (%s)", block.Type), nil
	case isBase64Text(text):
		der, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
		if err != nil {
			return nil, "", fmt.Errorf("base64: %w", err)
		}
		return der, "base64", nil
	}
	return data, "DER", nil
}

// isSequence tells whether the input is one DER sequence. No text is: base64 of a sequence begins with "M".
func isSequence(data []byte) bool {
	s := cryptobyte.String(data)
	var seq cryptobyte.String
	return s.ReadASN1(&seq, cbasn1.SEQUENCE) && s.Empty()
}

func isBase64Text(text []byte) bool {
	for _, c := range text {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("+/=\r\n\t ", rune(c)) {
			return false
		}
	}
	return true
}

// decodeSOAP takes the first token out of a [MS-WSTEP] message, or the response out of a fault (3.1.4.1.3.7).
func decodeSOAP(text []byte) (der []byte, input string, err error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil, "", errors.New("SOAP: the message holds no BinarySecurityToken")
		}
		if err != nil {
			return nil, "", fmt.Errorf("SOAP: %w", err)
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local != "BinarySecurityToken" && start.Name.Local != "BinaryResponse" {
			continue
		}
		var body string
		if err := d.DecodeElement(&body, &start); err != nil {
			return nil, "", fmt.Errorf("SOAP: %s: %w", start.Name.Local, err)
		}
		body = strings.Join(strings.Fields(body), "")
		if body == "" {
			continue // BinaryResponse is nil in most faults
		}
		if der, err = base64.StdEncoding.DecodeString(body); err != nil {
			return nil, "", fmt.Errorf("SOAP: %s: %w", start.Name.Local, err)
		}
		return der, "SOAP (" + start.Name.Local + ")", nil
	}
}
