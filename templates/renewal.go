package templates

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

func checkRenewal(in Input, t *Template, c *checks) {
	c.spec = "[MS-WCCE] 3.2.2.6.2.1.2.3"
	if in.RenewalOnly && (in.Request == nil || in.Request.Renewal == nil || in.Request.Renewal.Distrust != nil) {
		c.fail(hresult.AccessDenied, "renewal", "enroll by Kerberos, or user name and password, first", "who is known by a certificate alone may only renew one that was issued here")
		return
	}
	if in.Request == nil || in.Request.Renewal == nil {
		return
	}
	old := in.Request.Renewal
	name, oid := TemplateOf(old.Certificate)
	switch {
	case !(oid != "" && oid == t.OID || oid == "" && strings.EqualFold(name, t.Name)):
		c.fail(hresult.TemplateConflict, "renewal", "enroll anew for this template", "the renewed certificate was made for another template")
	case t.PrivateKeyFlags&KeyRequireSameKeyRenewal != 0 && !samePublicKey(old.Certificate.PublicKey, in.Request.PublicKey):
		c.fail(hresult.RenewalBadPublicKey, "renewal", "renew with the same key", "the template demands that a renewal keeps the key")
	case old.Distrust == nil && old.Owner != in.Subject.SID:
		c.fail(hresult.BadRenewalSubject, "renewal", "renew as the account that has the certificate", "the renewed certificate was issued to another account (%s)", old.Owner)
	case old.Distrust != nil:
		c.pass("renewal", "renews certificate %X, which counts as a first request: %v", old.Certificate.SerialNumber, old.Distrust)
	default:
		c.pass("renewal", "renews certificate %X", old.Certificate.SerialNumber)
	}
}

// approvedBefore returns nil where the renewed certificate stands for signatures and approval of this request, or why it
// does not: the rules of PREVIOUS_APPROVAL_VALIDATE_REENROLLMENT ([MS-WCCE] 3.2.2.6.2.1.4.8).
func approvedBefore(in Input, t *Template) error {
	r := in.Request
	switch {
	case t.EnrollmentFlags&EnrollPreviousApprovalValidate == 0:
		return errors.New("the template wants it for renewals too")
	case r == nil || r.Renewal == nil:
		return errors.New("the request renews nothing")
	case r.Renewal.Distrust != nil:
		return fmt.Errorf("the renewed certificate proves nothing: %w", r.Renewal.Distrust)
	case r.Renewal.Owner != in.Subject.SID:
		return errors.New("the renewed certificate is that of another account")
	}
	old := r.Renewal.Certificate
	if _, oid := TemplateOf(old); oid == "" || oid != t.OID {
		return errors.New("the renewed certificate does not name this template by its OID")
	}
	if t.EnrolleeSuppliesSubject() {
		if !bytes.Equal(r.Subject, old.RawSubject) && !emptyName(r.Subject) {
			return errors.New("the request asks for another subject than the renewed certificate has")
		}
		if names := extension(r.Extensions, oidSAN); names != nil && !bytes.Equal(names, sanOf(old)) {
			return errors.New("the request asks for other alternative names than the renewed certificate has")
		}
		return nil
	}
	return sameAccountNames(old, in.Subject)
}

// sameAccountNames requires that the certificate names the account by user principal name or mail address, and that each
// such name is the account's still.
func sameAccountNames(old *x509.Certificate, s Subject) error {
	found := false
	for _, name := range knownNames(sanOf(old)) {
		now, ok := map[string]string{"upn": s.UPN, "email": s.Mail}[strings.SplitN(name, ":", 2)[0]]
		if !ok {
			continue
		}
		if _, value, _ := strings.Cut(name, ":"); !strings.EqualFold(value, now) {
			return fmt.Errorf("the renewed certificate has %s, the account is now %q", name, now)
		}
		found = true
	}
	if !found {
		return errors.New("the renewed certificate has neither a user principal name nor a mail address")
	}
	return nil
}

// keyBased tells whether a renewal needs no Enroll right, because the old key is the proof ([MS-CRTD] 2.26,
// ALLOW_PREVIOUS_APPROVAL_KEYBASEDRENEWAL_VALIDATE_REENROLLMENT).
func keyBased(in Input, t *Template) bool {
	return RenewsByKey(t) && approvedBefore(in, t) == nil
}

// RenewsByKey tells whether certificates of the template can be renewed without the Enroll right.
func RenewsByKey(t *Template) bool {
	const flags = EnrollPreviousApprovalKeyBasedRenewal | EnrollPreviousApprovalValidate
	return t.EnrollmentFlags&flags == flags && t.EnrolleeSuppliesSubject()
}

// oldNames tells whether subject and alternative names are those of the renewed certificate, and why they cannot be where
// they have to: OLD_CERT_SUPPLIES_SUBJECT_AND_ALT_NAME, or a renewal that the old certificate approves.
func oldNames(in Input, t *Template) (bool, error) {
	r := in.Request
	if r == nil || r.Renewal == nil {
		return false, nil
	}
	if approvedBefore(in, t) == nil {
		return true, nil
	}
	if t.NameFlags&NameOldCertSuppliesSubject == 0 {
		return false, nil
	}
	old := r.Renewal.Certificate
	names := extension(r.Extensions, oidSAN)
	switch {
	case r.Renewal.Distrust != nil:
		return false, fmt.Errorf("the renewed certificate has to supply the names, and proves nothing: %w", r.Renewal.Distrust)
	case !emptyName(r.Subject) && !bytes.Equal(r.Subject, old.RawSubject), names != nil && !bytes.Equal(names, sanOf(old)):
		return false, errors.New("the template takes names from the renewed certificate, and the request asks for others")
	}
	return true, nil
}
