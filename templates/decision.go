package templates

import (
	"crypto"
	"crypto/x509/pkix"
	"fmt"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Outcome is what happens to a request.
type Outcome string

// The outcomes. A decision that fails any check is Deny.
const (
	Allow Outcome = "allow" // the certificate is issued
	Pend  Outcome = "pend"  // a certificate manager has to approve first
	Deny  Outcome = "deny"
)

// Check is one rule and how it went.
type Check struct {
	Name   string       `json:"name"`
	Pass   bool         `json:"pass"`
	Reason string       `json:"reason"`
	Fix    string       `json:"fix,omitempty"`
	Spec   string       `json:"spec,omitempty"`
	Code   hresult.Code `json:"-"` // what the client is told if the check fails
}

// Decision is the one answer to "may this caller have this certificate, and what is in it?".
type Decision struct {
	Outcome  Outcome            `json:"outcome"`
	Template string             `json:"template"`
	CA       string             `json:"ca,omitempty"`
	Archive  bool               `json:"archive"` // the private key must be archived before the certificate is issued
	Checks   []Check            `json:"checks"`  // every rule tried, in order
	Profile  CertificateProfile `json:"profile"` // complete unless the outcome is deny
}

// Err returns nil, or the first failed check as the error for the client.
func (d *Decision) Err() error {
	for _, c := range d.Checks {
		if !c.Pass {
			return hresult.New(c.Code, "template %q: %s", d.Template, c.Reason).WithFix("%s", c.Fix)
		}
	}
	return nil
}

// Add appends a check that needs the finished profile. A failed one makes the decision a refusal.
func (d *Decision) Add(c Check) {
	d.Checks = append(d.Checks, c)
	if !c.Pass {
		d.Outcome, d.Profile = Deny, CertificateProfile{}
	}
}

// CertificateProfile is what goes into the certificate besides the public key and what only the CA knows (serial
// number, issuer, key identifiers, revocation addresses).
type CertificateProfile struct {
	Template         string      `json:"template"`
	TemplateOID      string      `json:"template_oid,omitempty"`
	Subject          []byte      `json:"subject"` // DER of the Name
	SubjectText      string      `json:"subject_text"`
	SANs             []string    `json:"sans,omitempty"` // "email:alice@corp.example", for people
	EKUs             []string    `json:"ekus,omitempty"`
	KeyUsage         []string    `json:"key_usage,omitempty"`
	IssuancePolicies []string    `json:"issuance_policies,omitempty"`
	Extensions       []Extension `json:"extensions"` // in the order of the certificate
	NotBefore        time.Time   `json:"not_before"`
	NotAfter         time.Time   `json:"not_after"`
	// NoRevocationInfo asks the CA to leave out revocation addresses.
	NoRevocationInfo bool `json:"no_revocation_info,omitempty"`
	// EnrolleeSubject says that the names are the enrollee's own words: the certificate is not about the account.
	EnrolleeSubject bool `json:"enrollee_subject,omitempty"`
	// PublishToDS and PublishToKRA are where the certificate is written to once it is issued ([MS-WCCE] 3.2.2.1.5, 3.2.2.1.4).
	PublishToDS  bool `json:"publish_to_ds,omitempty"`
	PublishToKRA bool `json:"publish_to_kra,omitempty"`
}

// Extension is a certificate extension.
type Extension struct {
	OID      string `json:"oid"`
	Critical bool   `json:"critical,omitempty"`
	Value    []byte `json:"value"` // DER
}

// X509 is the extension as crypto/x509 has it.
func (e Extension) X509() (pkix.Extension, error) {
	oid, err := parseOID(e.OID)
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("extension: %w", err)
	}
	return pkix.Extension{Id: oid, Critical: e.Critical, Value: e.Value}, nil
}

// Reference names a template as a request does: by name (schema 1), by OID with version (schema 2 and later), or both.
type Reference struct {
	Name  string
	OID   string
	Major int // -1 where the request does not say
	Minor int // -1 where the request does not say
}

// String is the name, else the OID.
func (r Reference) String() string {
	if r.Name != "" {
		return r.Name
	}
	return r.OID
}

// Request is what a certificate request says, as far as policy looks at it. Every signature in it has been verified.
type Request struct {
	CMC            bool // a CMC full PKIRequest: the only form that can carry a key to archive
	PublicKey      crypto.PublicKey
	Subject        []byte      // DER of the Name
	Extensions     []Extension // requested
	ArchivedKey    bool        // a private key is enclosed
	ArchivedHash   bool        // the hash of one is
	KeyInEscrow    bool        // the key of the request is archived already (asked for renewals only)
	Renewal        *Proof      // the certificate that the request renews
	Signatures     []Proof     // beside those of the subject key and of the renewed certificate
	RequestorName  string      // set: Subject is that account, not the caller
	AttestedKey    bool        // carries an attestation statement
	RejectArchival error       // why an enclosed key is not acceptable in form
}

// Authority is the CA that the template is routed to, as far as policy looks at it.
type Authority struct {
	Service   string    // name of its pKIEnrollmentService object
	NotAfter  time.Time // end of the CA certificate: no certificate outlives it
	Archival  error     // nil: keys can be archived; else why not
	Configure string    // set where no such CA is configured here: the reason
}

// Input is everything a decision depends on.
type Input struct {
	Snapshot  *Snapshot
	MaxAge    time.Duration // a snapshot older than this decides nothing; 0 means no limit
	Authority Authority
	Caller    Caller
	Subject   Subject // whom the certificate is for; with Groups where it is not the caller
	// CallerDisabled is about an enrollment agent's own account; where the caller is the subject, Subject says it.
	CallerDisabled bool
	Agents         []AgentRule // who may enroll on behalf of whom
	RenewalOnly    bool        // the caller is known by a certificate alone
	NoPublishing   bool        // certificates are not written to the directory
	Template       Reference
	Request        *Request // nil: explain what a well-formed request would get
	Now            time.Time
	// Hazards are what is dangerous about templates, by template name, without what was accepted; nil where nobody looked.
	Hazards map[string][]Hazard
}

// checks collects the outcome of the rules.
type checks struct {
	list []Check
	spec string
}

func (c *checks) pass(name, format string, args ...any) {
	c.list = append(c.list, Check{Name: name, Pass: true, Reason: fmt.Sprintf(format, args...), Spec: c.spec})
}

func (c *checks) fail(code hresult.Code, name, fix, format string, args ...any) {
	c.list = append(c.list, Check{Name: name, Reason: fmt.Sprintf(format, args...), Fix: fix, Spec: c.spec, Code: code})
}

func (c *checks) failed() bool {
	for _, k := range c.list {
		if !k.Pass {
			return true
		}
	}
	return false
}
