package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

// dangerous is a snapshot in which ESC9 concerns the template T.
func dangerous() *templates.Snapshot {
	everybody := &security.Descriptor{Owner: "S-1-5-32-544", HasDACL: true, DACL: []security.ACE{{Type: security.ACEAllowObject, Mask: security.MaskControlAccess,
		HasObject: true, Object: security.RightEnroll, SID: security.AuthenticatedUsers}}}
	t := &templates.Template{Name: "T", Schema: 2, AppPolicies: []string{"1.3.6.1.5.5.7.3.2"}, EnrollmentFlags: templates.EnrollNoSecurityExtension, Security: everybody}
	return &templates.Snapshot{Templates: []*templates.Template{t}, Services: []*templates.EnrollmentService{{Name: "CA", Templates: []string{"T"}, Security: everybody}}}
}

// A running gateway serves a template whose risk is accepted up to the last second of the last day, and no longer, without
// a restart or a change in the directory; and policies that were made before are made anew.
func TestAnAcceptanceEndsWhileTheGatewayRuns(t *testing.T) {
	now := time.Date(2027, 3, 31, 23, 59, 59, 0, time.UTC)
	log, said := test.NewNullLogger()
	g := &Gateway{now: func() time.Time { return now }, Log: log,
		Config: &config.Config{AcceptRisk: []config.Risk{{Template: "T", Rule: "ESC9", By: "Jane Doe", Until: "2027-03-31"}}}}
	s := dangerous()
	before, first := g.hazards(s)
	again, same := g.hazards(s)
	if before == nil || len(before["T"]) != 0 || len(again["T"]) != 0 || first != same {
		t.Errorf("the last second: %v (%d), %v (%d)", before, first, again, same)
	}
	now = now.Add(time.Second)
	after, second := g.hazards(s)
	if len(after["T"]) != 1 || after["T"][0].Rule != "ESC9" || second == first {
		t.Errorf("the next day: %v (%d)", after, second)
	}
	confirmed := *s // a controller said again that nothing has changed
	if _, third := g.hazards(&confirmed); third != second {
		t.Error("the same state was looked at again")
	}
	fixed := dangerous()
	fixed.Templates[0].EnrollmentFlags = 0
	if left, _ := g.hazards(fixed); len(left) != 0 {
		t.Errorf("corrected in the directory: %v", left)
	}
	if last := said.LastEntry(); len(said.Entries) != 2 || said.Entries[0].Data["rule"] != "ESC9" || last.Data["template"] != "T" || !strings.Contains(last.Message, "any more") {
		t.Errorf("logged: %+v", said.Entries)
	}
	if none, _ := g.hazards(nil); none != nil {
		t.Errorf("without a directory: %v", none)
	}
}

// The first look at a new state of a forest with 500 templates, and a look-up as decisions do it.
func BenchmarkHazards(b *testing.B) {
	s := dangerous()
	for i := range 499 {
		t := *s.Templates[0]
		t.Name = fmt.Sprintf("T%d", i)
		t.Security = &security.Descriptor{Owner: "S-1-5-32-544", HasDACL: true}
		for k := range 12 {
			t.Security.DACL = append(t.Security.DACL, security.ACE{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true,
				Object: security.RightEnroll, SID: security.SID(fmt.Sprintf("S-1-5-21-1-2-3-%d", 1100+k))})
		}
		s.Templates, s.Services[0].Templates = append(s.Templates, &t), append(s.Services[0].Templates, t.Name)
	}
	log, _ := test.NewNullLogger()
	log.SetLevel(logrus.PanicLevel)
	g := &Gateway{now: time.Now, Log: log, Config: &config.Config{}}
	b.Run("new state", func(b *testing.B) {
		for b.Loop() {
			g.risks = hazardCache{}
			g.hazards(s)
		}
	})
	b.Run("look-up", func(b *testing.B) {
		for b.Loop() {
			g.hazards(s)
		}
	})
}
