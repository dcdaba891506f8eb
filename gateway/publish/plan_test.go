package publish

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// issued is a certificate of the gateway: "1 Mail wanted", "2 Mail published revoked", "3 Mail none expired". Its value is
// its number.
func issued(t *testing.T, text string) ledger.Publication {
	t.Helper()
	f := strings.Fields(text)
	p := ledger.Publication{Request: int64(f[0][0] - '0'), Template: f[1], State: ledger.PublicationState(f[2]), Certificate: []byte(f[0]), Serial: f[0], NotAfter: now.Add(time.Hour)}
	if p.State == "none" {
		p.State = ledger.None
	}
	for _, word := range f[3:] {
		switch word {
		case "revoked":
			p.Revoked = now.Add(-time.Hour)
		case "expired":
			p.NotAfter = now
		default:
			t.Fatal(word)
		}
	}
	return p
}

// words are the numbers of certificates with the first word of why.
func words(items []Item) string {
	var out []string
	for _, i := range items {
		out = append(out, i.Serial+" "+strings.Fields(i.Why)[0])
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestWhatIsAddedAndRemoved(t *testing.T) {
	for name, c := range map[string]struct {
		issued               []string
		values               []string
		add, remove          string
		published, withdrawn []int64
	}{
		"a new certificate":                      {[]string{"1 Mail wanted"}, nil, "1 its", "", []int64{1}, nil},
		"one that is there already":              {[]string{"1 Mail wanted"}, []string{"1"}, "", "", []int64{1}, nil},
		"one that somebody took away stays away": {[]string{"1 Mail published"}, nil, "", "", []int64{1}, nil},
		"a renewal":                              {[]string{"1 Mail published", "2 Mail wanted"}, []string{"1"}, "2 its", "1 superseded", []int64{2}, []int64{1}},
		"two at once: only the newer one":        {[]string{"1 Mail wanted", "2 Mail wanted"}, nil, "2 its", "", []int64{2}, []int64{1}},
		"another template":                       {[]string{"1 Mail published", "2 Logon wanted"}, []string{"1"}, "2 its", "", []int64{2, 1}, nil},
		"a template that is superseded":          {[]string{"1 Old published", "2 Mail wanted"}, []string{"1"}, "2 its", "1 superseded", []int64{2}, []int64{1}},
		"superseding works in one direction":     {[]string{"1 Mail published", "2 Old wanted"}, []string{"1"}, "2 its", "", []int64{2, 1}, nil},
		"a newer one that is not published":      {[]string{"1 Mail published", "2 Mail none"}, []string{"1"}, "", "", []int64{1}, nil},
		"a newer one that is revoked":            {[]string{"1 Mail published", "2 Mail wanted revoked"}, []string{"1"}, "", "", []int64{1}, []int64{2}},
		"a newer one that somebody took away":    {[]string{"1 Mail published", "2 Mail published"}, []string{"1"}, "", "", []int64{2, 1}, nil},
		"an expired one":                         {[]string{"1 Mail published expired"}, []string{"1"}, "", "1 expired", nil, []int64{1}},
		"a revoked one":                          {[]string{"1 Mail published revoked"}, []string{"1"}, "", "1 revoked", nil, []int64{1}},
		"revoked before it was published":        {[]string{"1 Mail wanted revoked"}, nil, "", "", nil, []int64{1}},
		"an expired one that a client published": {[]string{"1 Mail none expired"}, []string{"1"}, "", "1 expired", nil, nil},
		"a withdrawn one that somebody put back": {[]string{"1 Mail withdrawn", "2 Mail published"}, []string{"1", "2"}, "", "1 superseded", []int64{2}, nil},
		"what others issued is not touched":      {[]string{"1 Mail wanted"}, []string{"x", "y"}, "1 its", "", []int64{1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var list []ledger.Publication
			for _, text := range c.issued {
				list = append(list, issued(t, text))
			}
			var values [][]byte
			for _, v := range c.values {
				values = append(values, []byte(v))
			}
			p := newPlan(list, values, rules{now: now, cleanForeign: true, supersedes: func(newer, older string) bool { return newer == "Mail" && older == "Old" }})
			if words(p.add) != c.add || words(p.remove) != c.remove || !slices.Equal(p.published, c.published) || !slices.Equal(p.withdrawn, c.withdrawn) {
				t.Errorf("add %q, remove %q, published %v, withdrawn %v", words(p.add), words(p.remove), p.published, p.withdrawn)
			}
		})
	}
}

func TestInTheKRAContainerNothingIsSuperseded(t *testing.T) {
	p := newPlan([]ledger.Publication{issued(t, "1 KRA published"), issued(t, "2 KRA wanted"), issued(t, "3 KRA published expired")}, [][]byte{[]byte("1"), []byte("3")}, rules{now: now})
	if words(p.add) != "2 its" || words(p.remove) != "3 expired" {
		t.Errorf("add %q, remove %q", words(p.add), words(p.remove))
	}
}

func TestACertificateOfOthersGoesOnlyIfItIsExpiredAndTheRulesSaySo(t *testing.T) {
	_, over := testpki.Agent(t, "over", now.Add(-2*time.Hour), now.Add(-time.Hour))
	_, valid := testpki.Agent(t, "valid", now.Add(-2*time.Hour), now.Add(time.Hour))
	values := [][]byte{over.Raw, valid.Raw, []byte("no certificate")}
	if p := newPlan(nil, values, rules{now: now}); len(p.remove) != 0 {
		t.Errorf("removed: %+v", p.remove)
	}
	p := newPlan(nil, values, rules{now: now, cleanForeign: true})
	if len(p.remove) != 1 || p.remove[0].Serial != ledger.SerialText(over) || p.remove[0].Request != 0 {
		t.Errorf("removed: %+v", p.remove)
	}
}
