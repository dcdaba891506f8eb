package gateway

import (
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
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
	g := &Gateway{now: func() time.Time { return now },
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
	if none, _ := g.hazards(nil); none != nil {
		t.Errorf("without a directory: %v", none)
	}
}
