package templates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// What makes Windows skip a template in silence is said aloud.
func TestAutoEnrollmentSaysWhatWindowsDoesNot(t *testing.T) {
	f := recordedForest(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := f.snapshot.TemplateByName("LabUserAuth")
	oid, value := TemplateInfoValue(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: f.now.Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: mustOID(oid), Value: value}}}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	checkDS := func(in *Input) { change(in, func(t *Template) { t.EnrollmentFlags |= EnrollCheckUserDSCertificate }) }
	for _, c := range []struct {
		name, template string
		groups         []string
		change         func(*Input)
		skip, note     string // empty: none
	}{
		{"a member of the group", "LabUserSMIME", []string{"SMIME Users"}, nil, "", "clients older than Windows XP"},
		{"no AutoEnroll right", "LabOnBehalf", nil, nil, "no AutoEnroll right", "1 signature"},
		{"no flag", "LabUserAuth", nil, func(in *Input) { change(in, func(t *Template) { t.EnrollmentFlags &^= EnrollAutoEnrollment }) }, "does not ask for autoenrollment", ""},
		{"names by the enrollee", "LabWebServer", []string{"Certificate Managers"}, nil, "subject the enrollee supplies", "certificate manager"},
		{"renewed names", "LabWebServer", nil, func(in *Input) { change(in, func(t *Template) { t.NameFlags |= NameOldCertSuppliesSubject }) }, "gets no first one", ""},
		{"schema 1", "LabUserAuth", nil, func(in *Input) { change(in, func(t *Template) { t.Schema, t.GeneralFlags = 1, FlagAutoEnrollment }) }, "schema 1", ""},
		{"missing mail", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) { in.Subject.Mail = "" }, "attribute mail, and it is empty", ""},
		{"superseded", "User", nil, nil, `template "LabUserAuth" supersedes it`, ""},
		{"one in the directory", "LabUserAuth", nil, func(in *Input) { checkDS(in); in.Subject.Certs = [][]byte{{1}, der} }, "userCertificate has a certificate", ""},
		{"an old one in the directory", "LabUserAuth", nil, func(in *Input) { checkDS(in); in.Subject.Certs, in.Now = [][]byte{der}, in.Now.Add(2*time.Hour) }, "", ""},
		{"asks the user", "LabUserAuth", nil, func(in *Input) { change(in, func(t *Template) { t.EnrollmentFlags |= EnrollUserInteractionRequired }) }, "", "asks the user first"},
		{"a generation to come", "LabUserAuth", nil, func(in *Input) { change(in, func(t *Template) { t.PrivateKeyFlags |= 0x0F000000 }) }, "", "generation 15"},
	} {
		in := f.as(t, "alice", "Alice Archer", c.template, c.groups...)
		in.Request = nil
		if c.change != nil {
			c.change(&in)
		}
		d := Decide(in)
		a := AutoEnrolls(in, &d)
		has := func(list []string, text string) bool {
			return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, text) })
		}
		if a.Enrolls != (c.skip == "") || !a.Enrolls && !has(a.Skips, c.skip) || c.note != "" && !has(a.Notes, c.note) {
			t.Errorf("%s: %+v, want %q and %q", c.name, a, c.skip, c.note)
		}
	}
}
