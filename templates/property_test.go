package templates

import (
	"crypto/elliptic"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates/security"
)

// scene is a random situation of a real forest: one of its templates with other flags and rights, asked for by an account
// with some attributes and groups.
type scene struct {
	t   testing.TB
	r   *rand.Rand
	f   *forest
	key keys
}

// keys are public keys of every kind that a template can ask for.
type keys struct{ rsa, p256, p384 any }

func newScene(t testing.TB, seed uint64) *scene {
	return &scene{t: t, r: rand.New(rand.NewPCG(seed, 1)), f: recordedForest(t), key: keys{clientKey(), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())}}
}

func (s *scene) often(n int) bool { return s.r.IntN(n) > 0 }

// account is a random caller, for a random template of the forest.
func (s *scene) account() Input {
	all := s.f.snapshot.Templates
	in := s.f.as(s.t, "alice", "Alice Archer", all[s.r.IntN(len(all))].Name)
	in.Caller.Groups = nil
	for _, sid := range []security.SID{security.Everyone, security.AuthenticatedUsers, s.f.sid(s.t, "Domain Users"), s.f.sid(s.t, "SMIME Users"),
		s.f.sid(s.t, "Certificate Managers"), s.f.sid(s.t, "Domain Computers"), "S-1-5-21-1-2-3-512"} {
		if s.often(3) {
			in.Caller.Groups = append(in.Caller.Groups, sid)
		}
	}
	in.Subject.Machine = !s.often(4)
	in.Caller.Machine = in.Subject.Machine
	in.Subject.Disabled = !s.often(20)
	in.Subject.UPNExplicit = s.often(5)
	in.Subject.GUID = [16]byte{1}
	in.Subject.Domain = Domain{DNS: "lab.test", NetBIOS: "LAB"}
	if s.often(4) {
		in.Subject.DNSHostName = "ws1.lab.test"
	}
	if !s.often(5) {
		in.Subject.Mail = ""
	}
	if !s.often(20) {
		in.Authority.NotAfter = in.Now.AddDate(0, 0, -1)
	}
	change(&in, s.mutate)
	return in
}

// mutate flips a few known flags, rights and numbers.
func (s *scene) mutate(t *Template) {
	for s.often(3) {
		g := flagGroups[s.r.IntN(len(flagGroups))]
		f := g.flags[s.r.IntN(len(g.flags))]
		*t.value(g.attribute) ^= f.Bit & -f.Bit
	}
	sd := *t.Security
	sd.DACL = slices.Clone(sd.DACL)
	for s.often(2) {
		ace := security.ACE{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: s.sid()}
		if !s.often(3) {
			ace.Type = security.ACEDenyObject
		}
		sd.DACL = slices.Insert(sd.DACL, s.r.IntN(len(sd.DACL)+1), ace)
	}
	t.Security = &sd
	if !s.often(5) {
		t.RASignatures = s.r.IntN(3)
		t.RAAppPolicies = []string{oidRequestAgent}
	}
	if !s.often(4) {
		t.IssuancePolicies = []string{"1.2.3.4", "1.2.3.5"}[:1+s.r.IntN(2)]
	}
	if !s.often(4) {
		t.MinKeySize = []int{1024, 2048, 4096, 256}[s.r.IntN(4)]
	}
	if !s.often(4) {
		t.AsymmetricAlg = []string{"RSA", "ECDSA_P256", "ECDH_P384", "", "DSA"}[s.r.IntN(5)]
	}
}

func (s *scene) sid() security.SID {
	names := []string{"Domain Users", "SMIME Users", "Certificate Managers", "Domain Computers", "Alice Archer"}
	return s.f.sid(s.t, names[s.r.IntN(len(names))])
}

// wellFormed is the request that a good client makes for the template.
func (s *scene) wellFormed(in Input) *Request {
	t := in.Snapshot.TemplateByName(in.Template.Name)
	r := &Request{CMC: true, PublicKey: s.key.rsa, Subject: []byte{0x30, 0}, ArchivedKey: t.Archives(), ArchivedHash: t.Archives()}
	switch t.AsymmetricAlg {
	case "ECDSA_P256":
		r.PublicKey = s.key.p256
	case "ECDH_P384":
		r.PublicKey = s.key.p384
	}
	if t.EnrolleeSuppliesSubject() {
		r.Subject = mustName(s.t, "CN", "www.lab.test")
	}
	for range t.RASignatures {
		r.Signatures = append(r.Signatures, agentSignature(s.t, in))
	}
	if t.EnrollmentFlags&EnrollIssuancePoliciesFromRequest != 0 && len(t.IssuancePolicies) > 0 {
		r.Extensions = append(r.Extensions, Extension{OID: oidCertPolicies, Value: oidSequence(t.IssuancePolicies, true)})
	}
	return r
}

func failedNames(d Decision) (out []string) {
	for _, c := range d.Checks {
		if !c.Pass {
			out = append(out, c.Name)
		}
	}
	return out
}

const scenes = 10_000

// What explain says without a request is what a good request gets.
func TestExplainEqualsServing(t *testing.T) {
	s := newScene(t, 1)
	count := map[Outcome]int{}
	for range scenes {
		in := s.account()
		in.Request = nil
		explained := Decide(in)
		in.Request = s.wellFormed(in)
		if bits := in.Snapshot.TemplateByName(in.Template.Name).MinKeySize; bits > 2048 || bits > 384 && in.Request.PublicKey != s.key.rsa {
			continue // no key in this test is as long
		}
		served := Decide(in)
		count[served.Outcome]++
		if served.Outcome != explained.Outcome {
			t.Fatalf("explained %s (%v), served %s (%v) for %+v", explained.Outcome, explained.Checks, served.Outcome, served.Checks, in.Snapshot.TemplateByName(in.Template.Name))
		}
		if !slices.Equal(failedNames(served), failedNames(explained)) {
			t.Fatalf("explained %v, served %v", explained.Checks, served.Checks)
		}
		if in.Snapshot.TemplateByName(in.Template.Name).EnrolleeSuppliesSubject() {
			served.Profile.Subject, served.Profile.SubjectText = explained.Profile.Subject, explained.Profile.SubjectText
		}
		a, b := mustJSON(t, explained.Profile), mustJSON(t, served.Profile)
		if a != b {
			t.Fatalf("explained %s\nserved    %s", a, b)
		}
	}
	for _, o := range []Outcome{Allow, Pend, Deny} {
		if count[o] < 100 {
			t.Errorf("only %d of the decisions are %s: %v", count[o], o, count)
		}
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every refusal says what is wrong and what to do.
func TestEveryRefusalHasAFix(t *testing.T) {
	s := newScene(t, 2)
	spoil := []func(*Request){
		func(r *Request) {}, func(r *Request) { r.ArchivedKey = !r.ArchivedKey }, func(r *Request) { r.PublicKey = s.key.p384 },
		func(r *Request) { r.Subject = []byte{0x31, 0} }, func(r *Request) { r.Extensions = []Extension{{OID: oidSAN, Value: []byte{0x30, 2, 0x9f, 0}}} },
		func(r *Request) { r.RequestorName = `LAB\bob` }, func(r *Request) { r.Signatures = r.Signatures[:len(r.Signatures)/2] },
	}
	denied, names := 0, map[string]bool{}
	for range scenes {
		in := s.account()
		in.Request = s.wellFormed(in)
		spoil[s.r.IntN(len(spoil))](in.Request)
		switch s.r.IntN(10) {
		case 0:
			in.Template.Name = "Nonsense"
		case 1:
			in.Template.OID = "1.2.3"
		case 2:
			in.Subject.SID = "S-1-5-21-9-9-9-9"
		case 3:
			in.Authority.Configure = "there is no such CA"
		case 4:
			in.RenewalOnly = true
		}
		d := Decide(in)
		if d.Outcome != Deny {
			continue
		}
		denied++
		failed := false
		for _, c := range d.Checks {
			if c.Pass {
				continue
			}
			failed, names[c.Name] = true, true
			if c.Fix == "" || c.Reason == "" || c.Spec == "" || c.Code == 0 {
				t.Errorf("a failed check without fix, reason, source or code: %+v", c)
			}
		}
		if !failed {
			t.Fatalf("denied without a failed check: %+v", d)
		}
	}
	t.Logf("%d refusals by %d checks: %v", denied, len(names), slices.Sorted(maps.Keys(names)))
}

// A map has no order, and neither has the decision.
func TestTheDecisionDependsOnNoOrderOfMaps(t *testing.T) {
	s := newScene(t, 3)
	for range 300 {
		in := s.account()
		snapshot := *in.Snapshot
		in.Snapshot = &snapshot
		snapshot.OIDs, snapshot.Unusable = map[string]OIDObject{}, map[string]string{}
		for i := range 20 {
			oid := "1.2.3." + string(rune('0'+i%10))
			snapshot.OIDs[oid] = OIDObject{OID: oid, GroupLink: "CN=G" + oid}
			snapshot.Unusable["CN=Lost,CN="+strings.Repeat("x", i)] = "reason " + strings.Repeat("y", i)
		}
		if !s.often(3) {
			in.Template.Name = "Lost"
		}
		first := mustJSON(t, Decide(in))
		for range 20 {
			snapshot.OIDs, snapshot.Unusable = maps.Clone(snapshot.OIDs), maps.Clone(snapshot.Unusable)
			if again := mustJSON(t, Decide(in)); again != first {
				t.Fatalf("two answers to one question:\n%s\n%s", first, again)
			}
		}
	}
}

// One more entry that denies, anywhere in an access control list, never lets anybody in.
func TestADenyEntryNeverAllows(t *testing.T) {
	s := newScene(t, 4)
	for range scenes {
		in := s.account()
		before := Decide(in)
		change(&in, func(t *Template) {
			sd := *t.Security
			deny := security.ACE{Type: security.ACEDenyObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: s.sid()}
			sd.DACL = slices.Insert(slices.Clone(sd.DACL), s.r.IntN(len(sd.DACL)+1), deny)
			t.Security = &sd
		})
		if after := Decide(in); before.Outcome == Deny && after.Outcome != Deny {
			t.Fatalf("denied before, %s with one more deny entry", after.Outcome)
		}
	}
}

// Who leaves a group gains nothing, unless an entry denies the group something.
func TestLeavingAGroupNeverAddsARight(t *testing.T) {
	s := newScene(t, 5)
	compared := 0
	for range scenes {
		in := s.account()
		if len(in.Caller.Groups) == 0 {
			continue
		}
		i := s.r.IntN(len(in.Caller.Groups))
		gone := in.Caller.Groups[i]
		if slices.ContainsFunc(in.Snapshot.TemplateByName(in.Template.Name).Security.DACL, func(a security.ACE) bool { return a.SID == gone && !a.Allows() }) {
			continue
		}
		before := Decide(in)
		in.Caller.Groups = slices.Delete(slices.Clone(in.Caller.Groups), i, i+1)
		compared++
		if after := Decide(in); before.Outcome == Deny && after.Outcome != Deny {
			t.Fatalf("denied before, %s without the group %s", after.Outcome, gone)
		}
	}
	if compared < scenes/2 {
		t.Errorf("only %d compared", compared)
	}
}
