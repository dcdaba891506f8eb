package templates

import (
	"crypto/elliptic"
	"encoding/json"
	"math/bits"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates/security"
)

// situations are inputs for which the decision depends on one flag or another: each template of the lab and two more, asked
// for by a user and by a computer, as a first request, as a renewal with the old key and with a new one, as explain asks, on
// behalf of others, with the old key as the only proof, and with issuance policies.
func situations(t *testing.T) []Input {
	t.Helper()
	f := recordedForest(t)
	ocsp, bare := *f.snapshot.TemplateByName("LabUserAuth"), *f.snapshot.TemplateByName("LabUserAuth")
	ocsp.Name, ocsp.AppPolicies = "OCSP", []string{oidOCSPSigning}
	bare.Name, bare.NameFlags = "Bare", NameSANRequireUPN
	f.snapshot.Templates = append(f.snapshot.Templates, &ocsp, &bare)
	f.snapshot.Services[0].Templates = append(f.snapshot.Services[0].Templates, ocsp.Name, bare.Name)
	var out []Input
	for _, template := range f.snapshot.Templates {
		for _, change := range []func(*Input){
			func(*Input) {},
			func(in *Input) { in.Request.ArchivedKey, in.Request.ArchivedHash = true, true },
			func(in *Input) { renewSameKey(t, in) },
			func(in *Input) {
				renewSameKey(t, in)
				in.Request.PublicKey = ecKey(t, elliptic.P256())
			},
			func(in *Input) { in.Request = nil },
			func(in *Input) { onBehalf(t, f, in) },
			func(in *Input) {
				renewing(t, in, mustName(t, "CN", "www"), nil)
				change(in, func(t *Template) {
					t.EnrollmentFlags |= EnrollPreviousApprovalValidate | EnrollPreviousApprovalKeyBasedRenewal
					t.NameFlags = NameEnrolleeSuppliesSubject
					t.Security = &security.Descriptor{HasDACL: true}
				})
			},
			func(in *Input) {
				in.Request.Extensions = []Extension{{OID: oidCertPolicies, Value: oidSequence([]string{"1.2.3.4"}, true)}}
				change(in, func(t *Template) { t.IssuancePolicies = []string{"1.2.3.4", "1.2.3.5"} })
			},
		} {
			for _, machine := range []bool{false, true} {
				in := f.as(t, "alice", "Alice Archer", template.Name, "SMIME Users")
				in.Subject.DNSHostName, in.Subject.GUID = "alice.lab.test", [16]byte{1}
				in.Subject.Machine, in.Caller.Machine = machine, machine
				change(&in)
				out = append(out, in)
			}
		}
	}
	return out
}

// with is the decision with a flag set or cleared, and the template as it was then.
func with(in Input, f Flag, set bool) (Decision, []string) {
	original := in.Snapshot.TemplateByName(in.Template.Name)
	changed := *original
	v := changed.value(f.Attribute)
	*v &^= f.Bit
	if set {
		*v |= f.Bit
	}
	s := *in.Snapshot
	s.Templates = []*Template{&changed}
	in.Snapshot = &s
	return Decide(in), Unsupported(&changed)
}

// Each bit of the table is set and cleared in every situation, and does what the table says.
func TestEveryFlagDoesWhatTheTableSays(t *testing.T) {
	all := situations(t)
	seen := map[string]uint32{}
	for _, f := range AllFlags() {
		if f.Does == "" || f.Spec == "" || bits.OnesCount32(seen[f.Attribute]&f.Bit) > 0 {
			t.Errorf("%s %s: no text, no source, or the bits of another flag", f.Attribute, f.Name)
		}
		seen[f.Attribute] |= f.Bit
		t.Run(f.Attribute+" "+f.Name, func(t *testing.T) {
			differs, refused := 0, 0
			for _, in := range all {
				before, _ := with(in, f, false)
				after, no := with(in, f, true)
				a, err := json.Marshal(before)
				if err != nil {
					t.Fatal(err)
				}
				b, err := json.Marshal(after)
				if err != nil {
					t.Fatal(err)
				}
				if string(a) != string(b) {
					differs++
				}
				if strings.Contains(strings.Join(no, "; "), f.Name) && after.Outcome == Deny {
					refused++
				}
			}
			switch f.Effect {
			case EffectServer:
				if differs == 0 {
					t.Errorf("applied, says the table, but no decision depends on it")
				}
			case EffectRefused:
				if f.Bit == keyServerVersionMask {
					refused = differs
				}
				if refused != len(all) && f.Bit != keyServerVersionMask || refused == 0 {
					t.Errorf("refused, says the table, but only in %d of %d situations by name", refused, len(all))
				}
			default:
				if differs != 0 {
					t.Errorf("%s, says the table, but %d decisions depend on it", f.Effect, differs)
				}
			}
		})
	}
}
