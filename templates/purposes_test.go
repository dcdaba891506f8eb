package templates

import (
	"slices"
	"testing"
)

// What a request says about purposes, policies and the SID is not looked at, in schema 1 neither (CVE-2024-49019, ESC15).
func TestPurposesInARequestAreIgnored(t *testing.T) {
	f := recordedForest(t)
	s := *f.snapshot
	s.Services = []*EnrollmentService{{Name: labCA, Templates: []string{"User"}, Security: everybodyEnrolls(t)}}
	in := f.as(t, "alice", "Alice Archer", "User")
	in.Snapshot = &s
	const agent = "1.3.6.1.4.1.311.20.2.1"
	for _, supplied := range []bool{false, true} {
		schema1 := *f.snapshot.TemplateByName("User")
		if supplied {
			schema1.NameFlags = NameEnrolleeSuppliesSubject
		}
		s.Templates = []*Template{&schema1}
		in.Request.Subject = mustName(t, "CN", "www.lab.test")
		in.Request.Extensions = nil
		plain := Decide(in)
		in.Request.Extensions = []Extension{{OID: oidAppPolicies, Value: oidSequence([]string{agent}, true)}, {OID: oidEKU, Value: oidSequence([]string{agent}, false)},
			{OID: oidCertPolicies, Value: oidSequence([]string{"1.2.3"}, true)}, {OID: oidSIDExtension, Value: []byte("S-1-5-21-1-2-3-500")}}
		asked := Decide(in)
		if plain.Outcome != Allow || asked.Outcome != Allow {
			t.Fatalf("supplied names %t: %+v, %+v", supplied, plain.Checks, asked.Checks)
		}
		if !slices.Equal(plain.Profile.EKUs, asked.Profile.EKUs) || len(plain.Profile.Extensions) != len(asked.Profile.Extensions) {
			t.Errorf("supplied names %t: the request changes the certificate: %+v", supplied, asked.Profile)
		}
		for i, e := range asked.Profile.Extensions {
			if string(e.Value) != string(plain.Profile.Extensions[i].Value) {
				t.Errorf("supplied names %t: extension %s is the request's", supplied, e.OID)
			}
		}
	}
}
