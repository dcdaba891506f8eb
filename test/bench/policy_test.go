package bench

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// A large forest, and an account in many groups.
const (
	manyTemplates = 500
	manyOIDs      = 100_000
	manyGroups    = 1_000
)

func group(i int) security.SID {
	return security.SID(fmt.Sprintf("S-1-5-21-1111111111-2222222222-3333333333-%d", 1000+i))
}

// largeForest is a snapshot of which the account in every hundredth group may enroll by some templates.
func largeForest(b *testing.B) *templates.Snapshot {
	b.Helper()
	rights := func(i int) *security.Descriptor {
		d := &security.Descriptor{HasDACL: true, Owner: "S-1-5-21-1111111111-2222222222-3333333333-519"}
		for _, sid := range []security.SID{group(50_000 + i), group(60_000 + i), "S-1-5-21-1111111111-2222222222-3333333333-512", group(i % manyGroups)} {
			d.DACL = append(d.DACL, security.ACE{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: sid})
		}
		return d
	}
	s := &templates.Snapshot{Taken: time.Now(), ConfigDN: "CN=Configuration,DC=corp,DC=example", OIDs: map[string]templates.OIDObject{}}
	service := &templates.EnrollmentService{Name: world.CAName, Security: &security.Descriptor{HasDACL: true, DACL: []security.ACE{{Type: security.ACEAllow, Mask: security.MaskControlAccess, SID: security.AuthenticatedUsers}}}}
	for i := range manyTemplates {
		t := &templates.Template{Name: fmt.Sprintf("Template%03d", i), OID: "1.3.6.1.4.1.311.21.8.1.2.3." + strconv.Itoa(i), Schema: 2, Major: 100, Minor: 1,
			EnrollmentFlags: templates.EnrollAutoEnrollment, NameFlags: templates.NameSubjectRequireDirectoryPath | templates.NameSANRequireUPN,
			Validity: 365 * 24 * time.Hour, Overlap: 42 * 24 * time.Hour, KeyUsage: 0xA000, EKUs: []string{"1.3.6.1.5.5.7.3.2"}, AppPolicies: []string{"1.3.6.1.5.5.7.3.2"},
			MinKeySize: 2048, Security: rights(i)}
		s.Templates = append(s.Templates, t)
		service.Templates = append(service.Templates, t.Name)
	}
	for i := range manyOIDs {
		oid := "1.3.6.1.4.1.311.21.8.9." + strconv.Itoa(i)
		s.OIDs[oid] = templates.OIDObject{OID: oid, DisplayName: "Policy " + strconv.Itoa(i)}
	}
	s.Services = []*templates.EnrollmentService{service}
	s.Index()
	return s
}

// member is an account in many groups, as authentication hands it on.
func member() templates.Caller {
	c := templates.Caller{Principal: "alice@CORP.EXAMPLE", SID: group(7), Groups: []security.SID{security.AuthenticatedUsers}}
	for i := range manyGroups {
		c.Groups = append(c.Groups, group(i))
	}
	return c.WithToken()
}

// BenchmarkDecide decides a plain request in a large forest.
func BenchmarkDecide(b *testing.B) {
	in := templates.Input{Snapshot: largeForest(b), Caller: member(), Now: time.Now(),
		Authority: templates.Authority{Service: world.CAName, NotAfter: time.Now().AddDate(5, 0, 0)},
		Subject: templates.Subject{CN: "Alice", SAMAccount: "alice", UPN: "alice@corp.example", UPNExplicit: true, SID: group(7),
			RDNs: [][]templates.RDN{{{Type: "CN", Value: "Alice"}}, {{Type: "DC", Value: "corp"}}, {{Type: "DC", Value: "example"}}}},
		Template: templates.Reference{Name: "Template499", OID: "1.3.6.1.4.1.311.21.8.1.2.3.499", Major: 100, Minor: 1},
		Request:  &templates.Request{CMC: true, PublicKey: testpki.RSA(b, 2048).Public(), Subject: []byte{0x30, 0}}}
	if d := templates.Decide(in); d.Outcome != templates.Allow {
		b.Fatalf("%+v", d)
	}
	start := cpu()
	for b.Loop() {
		templates.Decide(in)
	}
	b.ReportMetric(float64((cpu()-start).Nanoseconds())/1000/float64(b.N), "µs-CPU/decision")
}

// still is a directory whose snapshot the benchmark sets.
type still struct {
	gateway.Directory
	snapshot *templates.Snapshot
}

func (s *still) Snapshot() *templates.Snapshot { return s.snapshot }

// BenchmarkLargePolicies answers GetPolicies in a large forest: from the cache, with nothing in it, and while an administrator
// changes a template between every hundred requests of callers with ten kinds of rights.
func BenchmarkLargePolicies(b *testing.B) {
	w := world.Start(b)
	d := &still{Directory: w.Directory, snapshot: largeForest(b)}
	w.Directory = d
	ask := func(b *testing.B, caller templates.Caller) {
		p, err := w.Policies(background, caller, soap.GetPoliciesRequest{}, false)
		if err != nil || len(p.Policies) == 0 || len(p.Encode()) == 0 {
			b.Fatalf("%d policies, %v", len(p.Policies), err)
		}
	}
	churn := func() {
		next := *d.snapshot
		next.Templates = slices.Clone(next.Templates)
		changed := *next.Templates[0]
		changed.Minor++
		next.Templates[0] = &changed
		next.Index()
		d.snapshot = &next
	}
	kinds := make([]templates.Caller, 10)
	for i := range kinds {
		kinds[i] = member()
		kinds[i].Groups = slices.Delete(slices.Clone(kinds[i].Groups), 1, 1+50*i)
		kinds[i] = kinds[i].WithToken()
	}
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			ask(b, kinds[0])
		}
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			churn()
			ask(b, kinds[0])
		}
	})
	b.Run("churn", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if i++; i%100 == 0 {
				churn()
			}
			ask(b, kinds[i%len(kinds)])
		}
	})
}
