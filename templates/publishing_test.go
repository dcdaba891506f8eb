package templates

import (
	"slices"
	"strings"
	"testing"
)

func TestADecisionSaysWhereTheCertificateIsPublished(t *testing.T) {
	f := recordedForest(t)
	for name, c := range map[string]struct {
		flags    uint32
		off      bool
		ds, kra  bool
		mentions string // what a check says
	}{
		"nowhere":                {0, false, false, false, ""},
		"to the account":         {EnrollPublishToDS, false, true, false, "written to userCertificate"},
		"to the KRA container":   {EnrollPublishToKRAContainer, false, false, true, "written to the KRA container"},
		"to both":                {EnrollPublishToDS | EnrollPublishToKRAContainer, false, true, true, "written to the KRA container"},
		"publishing is off":      {EnrollPublishToDS, true, false, false, "not written to userCertificate of the account, which the template asks for: publish.enabled is false"},
		"nothing, and it is off": {0, true, false, false, ""},
	} {
		in := f.as(t, "alice", "Alice Archer", "LabUserAuth", "SMIME Users")
		change(&in, func(t *Template) { t.EnrollmentFlags = c.flags })
		in.NoPublishing = c.off
		d := Decide(in)
		if d.Outcome != Allow || d.Profile.PublishToDS != c.ds || d.Profile.PublishToKRA != c.kra {
			t.Errorf("%s: %s, %+v", name, d.Outcome, d.Profile)
		}
		said := slices.ContainsFunc(d.Checks, func(k Check) bool {
			return k.Name == "publishing" && (c.mentions == "" || strings.Contains(k.Reason, c.mentions))
		})
		if said != (c.mentions != "") {
			t.Errorf("%s: checks %+v", name, d.Checks)
		}
	}
	denied := f.as(t, "bob", "Bob Baker", "LabUserSMIME")
	if d := Decide(denied); d.Outcome != Deny || d.Profile.PublishToDS {
		t.Errorf("%+v", d)
	}
}
