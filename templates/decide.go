package templates

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// clockSkew is how far before now a certificate begins, so that clients with a slow clock accept it.
const clockSkew = 10 * time.Minute

// serverGeneration is the CA generation that this implementation stands for: Windows Server 2016 and later.
const serverGeneration = 7

// Decide applies the rules in the order of [MS-WCCE] 3.2.2.6.2.1.4 and reports every one of them, also after the first
// failure, so that an administrator sees all that is wrong at once.
func Decide(in Input) Decision {
	d := Decision{Template: in.Template.String(), CA: in.Authority.Service}
	c := &checks{list: make([]Check, 0, 20)}
	t := findTemplate(in, c)
	if t == nil {
		d.Outcome, d.Checks = Deny, c.list
		return d
	}
	d.Template, d.Archive = t.Name, t.Archives()
	checkOffered(in, t, c)
	checkUnderstood(in, t, c)
	checkHazards(in, t, c)
	checkVersion(in, t, c)
	checkAccount(in, t, c)
	checkRights(in, t, c)
	checkOnBehalf(in, t, c)
	checkSignatures(in, t, c)
	checkArchival(in, t, c)
	checkKey(in, t, c)
	checkRenewal(in, t, c)
	d.Profile = buildProfile(in, t, c)
	pend := checkApproval(in, t, c)
	checkPublishing(in, t, c, &d.Profile)

	d.Checks = c.list
	switch {
	case c.failed():
		d.Outcome, d.Profile = Deny, CertificateProfile{}
	case pend:
		d.Outcome = Pend
	default:
		d.Outcome = Allow
	}
	return d
}

func findTemplate(in Input, c *checks) *Template {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.1"
	const name = "template"
	s := in.Snapshot
	if s == nil {
		c.fail(hresult.ServerUnavailable, "directory", "check the connection to the domain controllers", "the directory has not been read yet")
		return nil
	}
	if age := in.Now.Sub(s.Taken); in.MaxAge > 0 && age > in.MaxAge {
		c.fail(hresult.ServerUnavailable, "directory", "check the connection to the domain controllers",
			"the directory was read %s ago, more than the allowed %s", age.Round(time.Second), in.MaxAge)
		return nil
	}
	ref := in.Template
	if ref.Name == "" && ref.OID == "" {
		c.fail(hresult.UnsupportedCertType, name, "name a template in the request", "the request names no template")
		return nil
	}
	var byName, byOID *Template
	if ref.Name != "" {
		byName = s.TemplateByName(ref.Name)
	}
	if ref.OID != "" {
		byOID = s.TemplateByOID(ref.OID)
	}
	t := byOID
	switch {
	case ref.Name != "" && ref.OID != "" && byName != byOID:
		c.fail(hresult.TemplateConflict, name, "name one template in the request", "the request names two templates: %q and OID %s", ref.Name, ref.OID)
		return nil
	case ref.OID == "":
		t = byName
	}
	if t != nil {
		c.pass(name, "template %q, schema version %d, version %d.%d", t.Name, t.Schema, t.Major, t.Minor)
		return t
	}
	for _, object := range slices.Sorted(maps.Keys(s.Unusable)) {
		reason := s.Unusable[object]
		if ref.Name != "" && strings.EqualFold(object, ref.Name) || strings.HasPrefix(strings.ToLower(object), "cn="+strings.ToLower(ref.Name)+",") {
			c.fail(hresult.UnsupportedCertType, name, "correct the template object", "the template cannot be understood: %s", reason)
			return nil
		}
	}
	c.fail(hresult.UnsupportedCertType, name, "create the template, or correct its name", "the forest has no template %q", ref)
	return nil
}

func checkOffered(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.1"
	a := in.Authority
	service := in.Snapshot.Service(a.Service)
	switch {
	case a.Configure != "":
		c.fail(hresult.UnsupportedCertType, "offered", "add the CA to the configuration", "%s", a.Configure)
	case service == nil:
		c.fail(hresult.UnsupportedCertType, "offered", "publish the CA as a pKIEnrollmentService object in the directory",
			"the directory has no enrollment service %q", a.Service)
	case !service.Offers(t.Name):
		c.fail(hresult.UnsupportedCertType, "offered", fmt.Sprintf("add %q to the templates that %q issues", t.Name, service.Name),
			"CA %q does not offer this template", service.Name)
	default:
		c.pass("offered", "CA %q offers this template", service.Name)
	}
}

// checkUnderstood refuses what this implementation does not do, by name, rather than issue something else.
func checkUnderstood(in Input, t *Template, c *checks) {
	c.spec = "[MS-CRTD] 2"
	if no := Unsupported(t); len(no) > 0 {
		c.fail(hresult.NotSupported, "understood", "change the template, or serve it from another CA", "not supported: %s", strings.Join(no, "; "))
		return
	}
	c.pass("understood", "every flag and attribute of the template is understood")
}

// Unsupported lists what in the template this implementation refuses to serve; nil where it serves the template.
func Unsupported(t *Template) (no []string) {
	no = t.unknownBits()
	refuse := func(when bool, what string) {
		if when {
			no = append(no, what)
		}
	}
	refuse(t.Schema < 1 || t.Schema > 4, fmt.Sprintf("schema version %d", t.Schema))
	refuse(t.MinimumServer() > serverGeneration, fmt.Sprintf("a CA of generation %d", t.MinimumServer()))
	refuse(t.GeneralFlags&(FlagIsCA|FlagIsCrossCA) != 0, "certificates for certification authorities (IS_CA, IS_CROSS_CA)")
	refuse(t.PrivateKeyFlags&KeyAttestRequired != 0, "key attestation (ATTEST_REQUIRED)")
	refuse(t.Validity <= 0, "a template without a validity period (pKIExpirationPeriod)")
	return no
}

func checkVersion(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.2"
	ref := in.Template
	if t.Schema < 2 || ref.Major < 0 || ref.OID == "" {
		return
	}
	if ref.Major > t.Major || ref.Minor > t.Minor && ref.Major == t.Major {
		c.fail(hresult.BadTemplateVersion, "version", "wait until the change has replicated to the gateway's domain controller",
			"the request was made for version %d.%d, the directory has %d.%d", ref.Major, max(ref.Minor, 0), t.Major, t.Minor)
		return
	}
	c.pass("version", "the request was made for version %d.%d", ref.Major, max(ref.Minor, 0))
}

func checkAccount(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.4.1"
	onBehalf := in.Request != nil && in.Request.RequestorName != ""
	switch {
	case in.Caller.Realm != "" && !onBehalf && !strings.EqualFold(in.Caller.Realm, in.Subject.Domain.DNS):
		// A domain that is trusted vouches for its own accounts only, whatever SID it writes into a ticket.
		c.fail(hresult.AccessDenied, "account", "ask the administrators of "+in.Caller.Realm+" about the ticket",
			"the ticket of %s names the SID of an account of the domain %s", in.Caller.Principal, in.Subject.Domain.DNS)
	case in.CallerDisabled:
		c.fail(hresult.AccountDisabled, "account", "enable the account", "the account %s is disabled", in.Caller.Principal)
	case in.Subject.Disabled:
		c.fail(hresult.AccountDisabled, "account", "enable the account", "the account %s is disabled", in.Subject.SAMAccount)
	case !ForCaller(t, Caller{Machine: in.Subject.Machine}) && t.Machine():
		c.fail(hresult.TemplateDenied, "account", "use a template for users", "the template is for computers, %s is a user", in.Subject.SAMAccount)
	case !ForCaller(t, Caller{Machine: in.Subject.Machine}):
		c.fail(hresult.TemplateDenied, "account", "use a template for computers", "the template is for users, %s is a computer", in.Subject.SAMAccount)
	default:
		c.pass("account", "the account %s is enabled", in.Subject.SAMAccount)
	}
}

// ForCaller tells whether the template is for the caller's kind of account, user or computer. Where the enrollee names
// the subject it is for both.
func ForCaller(t *Template, caller Caller) bool {
	return t.EnrolleeSuppliesSubject() || t.Machine() == caller.Machine
}

// checkRights evaluates the Enroll right on the CA and on the template ([MS-CRTD] 2.5.1).
func checkRights(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.3"
	token := in.Caller.Token()
	if service := in.Snapshot.Service(in.Authority.Service); service != nil {
		if service.Security == nil {
			c.fail(hresult.EnrollDenied, "ca-enroll-right", "let the gateway's account read the security descriptor", "the permissions on CA %q cannot be read", service.Name)
		} else if access := service.Security.ControlAccess(token, security.RightEnroll); !access.Granted {
			c.fail(hresult.EnrollDenied, "ca-enroll-right", fmt.Sprintf("give one of the account's groups the Enroll right on the CA object %q", service.Name),
				"no Enroll right on the CA: %s", access.Reason)
		} else {
			c.pass("ca-enroll-right", "Enroll right on the CA: %s", access.Reason)
		}
	}
	access := t.Security.ControlAccess(token, security.RightEnroll)
	if !access.Granted && keyBased(in, t) {
		c.pass("enroll-right", "the renewed certificate stands for the Enroll right on the template")
		return
	}
	if !access.Granted {
		c.fail(hresult.TemplateDenied, "enroll-right", fmt.Sprintf("add the account to a group that has Enroll on template %q, or give one of its groups that right", t.Name),
			"no Enroll right on the template: %s", access.Reason)
		return
	}
	c.pass("enroll-right", "Enroll right on the template: %s", access.Reason)
}

// Rights tells what the caller may do with the template on this CA, for a policy reply.
func Rights(t *Template, service *EnrollmentService, caller Caller) (enroll, autoEnroll bool) {
	token := caller.Token()
	if service.Security == nil || !service.Security.ControlAccess(token, security.RightEnroll).Granted {
		return false, false
	}
	enroll = t.Security.ControlAccess(token, security.RightEnroll).Granted
	return enroll, enroll && t.Security.ControlAccess(token, security.RightAutoEnroll).Granted
}

func checkArchival(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.2.2"
	const name = "archival"
	r := in.Request
	if !t.Archives() {
		if r != nil && (r.ArchivedKey || r.ArchivedHash) {
			c.fail(hresult.ArchivedKeyUnexpected, name, "send the request without the key", "the request encloses a private key, but the template does not archive keys")
		}
		return
	}
	renewsSameKey := r != nil && r.Renewal != nil && t.PrivateKeyFlags&KeyRequireSameKeyRenewal != 0
	switch {
	case in.Authority.Archival != nil:
		err := hresult.From(in.Authority.Archival)
		c.fail(err.Code, name, cmp.Or(err.Fix, "see enrollgate escrow agents list"), "keys cannot be archived: %s", err.Text)
	case r == nil:
		c.pass(name, "the private key must be enclosed and will be archived")
	case renewsSameKey && !r.ArchivedKey && r.KeyInEscrow:
		c.pass(name, "the renewal keeps the key, and it is archived")
	case !r.CMC || !r.ArchivedKey:
		c.fail(hresult.ArchivedKeyRequired, name, "enroll with a client that archives keys, such as Windows", "the template demands that the private key is archived, but the request encloses none")
	case r.RejectArchival != nil:
		err := hresult.From(r.RejectArchival)
		c.fail(err.Code, name, cmp.Or(err.Fix, "enroll with a client that encloses the key as Windows does"), "%s", err.Text)
	default:
		c.pass(name, "the private key is enclosed and will be archived")
	}
}

func checkKey(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.5"
	want := t.AsymmetricAlg
	if want == "" {
		want = "RSA"
	}
	wantRSA := strings.EqualFold(want, "RSA")
	curve := ""
	if family, size, ok := strings.Cut(strings.ToUpper(want), "_P"); ok && (family == "ECDSA" || family == "ECDH") {
		curve = "P-" + size
	}
	if !wantRSA && curve == "" {
		c.fail(hresult.NotSupported, "key", "choose RSA or an NIST curve in the template", "the template's key algorithm %q is not supported", want)
		return
	}
	if in.Request == nil {
		c.pass("key", "%s key of at least %d bits", want, t.MinKeySize)
		return
	}
	algorithm, bits := keyStrength(in.Request.PublicKey)
	switch {
	case wantRSA != (algorithm == "RSA") || curve != "" && algorithm != curve:
		c.fail(hresult.KeyLength, "key", fmt.Sprintf("make a key of type %s", want), "the key is %s, the template demands %s", algorithm, want)
	case bits < t.MinKeySize:
		c.fail(hresult.KeyLength, "key", fmt.Sprintf("make a key of at least %d bits", t.MinKeySize), "the key has %d bits, the template demands at least %d", bits, t.MinKeySize)
	default:
		c.pass("key", "%s key of %d bits", want, bits)
	}
}

func keyStrength(key any) (algorithm string, bits int) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return "RSA", k.N.BitLen()
	case *ecdsa.PublicKey:
		return k.Curve.Params().Name, k.Curve.Params().BitSize
	}
	return fmt.Sprintf("%T", key), 0
}

func checkApproval(in Input, t *Template, c *checks) (pend bool) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.8"
	if t.EnrollmentFlags&EnrollPendAllRequests == 0 {
		return false
	}
	if approvedBefore(in, t) == nil {
		c.pass("approval", "the renewed certificate stands for the approval")
		return false
	}
	c.pass("approval", "a certificate manager has to approve each request")
	return true
}

// checkPublishing says where the certificate will be written, and has the profile say so to those who write it.
func checkPublishing(in Input, t *Template, c *checks, p *CertificateProfile) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.4.5.6"
	for _, place := range []struct {
		flag   uint32
		wanted *bool
		where  string
	}{
		{EnrollPublishToDS, &p.PublishToDS, "userCertificate of the account"},
		{EnrollPublishToKRAContainer, &p.PublishToKRA, "the KRA container"},
	} {
		switch {
		case t.EnrollmentFlags&place.flag == 0:
		case in.NoPublishing:
			c.pass("publishing", "the certificate is not written to %s, which the template asks for: publish.enabled is false", place.where)
		default:
			*place.wanted = true
			c.pass("publishing", "after it is issued the certificate is written to %s", place.where)
		}
	}
}
