package templates

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AutoEnrollment is what the autoenrollment of a Windows client makes of a template. What makes it skip one it tells nobody:
// neither the user nor the CA hears of it.
type AutoEnrollment struct {
	Enrolls bool     `json:"enrolls"`
	Skips   []string `json:"skips,omitempty"` // each is enough
	Notes   []string `json:"notes,omitempty"` // what depends on the client, or comes after
}

// windowsGenerations are the values of the minimum client version ([MS-CRTD] 2.27).
var windowsGenerations = []string{"Windows 2000", "Windows XP and Server 2003", "Windows Vista and Server 2008", "Windows 7 and Server 2008 R2",
	"Windows 8 and Server 2012", "Windows 8.1 and Server 2012 R2", "Windows 10 and Server 2016"}

// AutoEnrolls tells whether the account's client picks the template up by itself, given what the decision for it is.
func AutoEnrolls(in Input, d *Decision) AutoEnrollment {
	var a AutoEnrollment
	skip := func(when bool, format string, args ...any) {
		if when {
			a.Skips = append(a.Skips, fmt.Sprintf(format, args...))
		}
	}
	note := func(when bool, format string, args ...any) {
		if when {
			a.Notes = append(a.Notes, fmt.Sprintf(format, args...))
		}
	}
	t, service := in.Snapshot.TemplateByName(d.Template), in.Snapshot.Service(in.Authority.Service)
	if t == nil || service == nil {
		skip(true, "no CA here has the template")
		return a
	}
	_, auto := Rights(t, service, in.Caller)
	skip(!auto, "the account has no AutoEnroll right on the template")
	skip(!t.asksForAutoEnrollment(), "the template does not ask for autoenrollment (AUTO_ENROLLMENT)")
	skip(t.Schema == 1, "Windows autoenrolls no schema 1 templates")
	skip(t.EnrolleeSuppliesSubject() && t.NameFlags&NameOldCertSuppliesSubject == 0, "Windows skips templates whose subject the enrollee supplies")
	skip(t.EnrolleeSuppliesSubject() && t.NameFlags&NameOldCertSuppliesSubject != 0, "the enrollee supplies the subject: Windows renews certificates of the template, but gets no first one")
	if by := supersededBy(in, t); by != "" {
		skip(true, "template %q supersedes it, and the account autoenrolls for that", by)
	}
	if until := t.inDirectory(in.Subject.Certs, in.Now); !until.IsZero() {
		skip(true, "userCertificate has a certificate of the template until %s (AUTO_ENROLLMENT_CHECK_USER_DS_CERTIFICATE)", until.Format(time.DateOnly))
	}
	if err := d.Err(); err != nil {
		i := slices.IndexFunc(d.Checks, func(c Check) bool { return !c.Pass })
		skip(true, "the client would ask and be refused: %s", d.Checks[i].Reason)
	}
	note(t.RASignatures > 0, "the client needs %s for it, from a certificate that the account has", t.signaturesText())
	note(t.EnrollmentFlags&EnrollUserInteractionRequired != 0, "the client asks the user first (USER_INTERACTION_REQUIRED)")
	note(t.EnrollmentFlags&EnrollSkipAutoRenewal != 0, "the client does not renew it by itself (SKIP_AUTO_RENEWAL)")
	note(d.Outcome == Pend, "the client asks, and again every eight hours, until a certificate manager has decided")
	if generation := t.MinimumClient(); generation > 0 {
		name := fmt.Sprintf("generation %d", generation)
		if generation < len(windowsGenerations) {
			name = windowsGenerations[generation]
		}
		note(true, "clients older than %s skip it", name)
	}
	a.Enrolls = len(a.Skips) == 0
	return a
}

// asksForAutoEnrollment reads the flag where the schema version has it.
func (t *Template) asksForAutoEnrollment() bool {
	if t.Schema == 1 {
		return t.GeneralFlags&FlagAutoEnrollment != 0
	}
	return t.EnrollmentFlags&EnrollAutoEnrollment != 0
}

// supersededBy names a template that the account autoenrolls for and that takes the place of t ([MS-CRTD] 2.21), or "".
func supersededBy(in Input, t *Template) string {
	for _, other := range in.Snapshot.Templates {
		if other == t || !other.asksForAutoEnrollment() || !slices.ContainsFunc(other.Supersedes, func(n string) bool { return strings.EqualFold(n, t.Name) }) {
			continue
		}
		for _, service := range in.Snapshot.Services {
			if _, auto := Rights(other, service, in.Caller); auto && service.Offers(other.Name) && ForCaller(other, in.Caller) && !other.EnrolleeSuppliesSubject() {
				return other.Name
			}
		}
	}
	return ""
}

// inDirectory is the end of a certificate of the template among those of the account, where the template wants the client to
// look; zero where there is none.
func (t *Template) inDirectory(certs [][]byte, now time.Time) time.Time {
	if t.EnrollmentFlags&EnrollCheckUserDSCertificate == 0 {
		return time.Time{}
	}
	for _, der := range certs {
		cert, err := x509.ParseCertificate(der)
		if err != nil || !cert.NotAfter.After(now) {
			continue
		}
		if name, oid := TemplateOf(cert); oid != "" && oid == t.OID || oid == "" && strings.EqualFold(name, t.Name) {
			return cert.NotAfter
		}
	}
	return time.Time{}
}
