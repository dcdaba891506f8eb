package gateway

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/sirupsen/logrus"
)

// groups is a directory that knows groups only.
type groups struct{ Directory }

func (groups) SIDsOf(_ context.Context, names []string) (out []security.SID, err error) {
	for _, n := range names {
		out = append(out, security.SID("S-1-5-21-1-2-3-"+n))
	}
	return out, nil
}

func routing(t *testing.T, routes ...config.Route) *Gateway {
	t.Helper()
	forest, err := ldapsync.NewForest(ldapsync.Config{Domain: "corp.example", Site: "Berlin", Auth: ldapsync.Auth{Method: ldapsync.Simple, User: "x", Password: "y"}}, nil, logrus.New())
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Config: &config.Config{Routes: routes}, Directory: groups{}, Forest: forest, now: time.Now}
	for _, name := range []string{"Main", "Mail", "Berlin", "Last"} {
		g.signers = append(g.signers, &CA{Name: name})
	}
	g.CAs = g.signers[:1]
	return g
}

func TestTheFirstRouteThatMatchesCounts(t *testing.T) {
	g := routing(t,
		config.Route{Templates: []string{"Server"}, To: []config.Destination{{CA: "Berlin"}}},
		config.Route{Groups: []string{"1001"}, Domains: []string{"CORP.example"}, To: []config.Destination{{CA: "Mail"}}, Failover: []string{"Last", "Main"}},
		config.Route{Sites: []string{"Paris"}, To: []config.Destination{{CA: "Last"}}},
		config.Route{CAs: []string{"Other"}, To: []config.Destination{{CA: "Last"}}},
		config.Route{Sites: []string{"berlin"}, Templates: []string{"Site"}, To: []config.Destination{{CA: "Berlin"}}},
	)
	in := func(group, domain string) templates.Input {
		sid := security.SID("S-1-5-21-1-2-3-500")
		return templates.Input{Caller: templates.Caller{SID: sid, Groups: []security.SID{security.SID("S-1-5-21-1-2-3-" + group)}},
			Subject: templates.Subject{SID: sid, Domain: templates.Domain{DNS: domain}}}
	}
	for name, c := range map[string]struct {
		template, group, domain string
		want                    []string
	}{
		"by template":                {"server", "1001", "corp.example", []string{"Berlin"}},
		"by group":                   {"User", "1001", "corp.example", []string{"Mail", "Last", "Main"}},
		"of another domain":          {"User", "1001", "part.example", []string{"Main"}},
		"of no group":                {"User", "1002", "corp.example", []string{"Main"}},
		"by the controller's site":   {"Site", "1002", "corp.example", []string{"Berlin"}},
		"what no route is for stays": {"Other", "1002", "corp.example", []string{"Main"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := g.planFor(context.Background(), g.CAs[0], c.template, in(c.group, c.domain))
			if err != nil {
				t.Fatal(err)
			}
			if got := names(g.signersFor(p, []byte("a request"))); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestWeightsShareOrders(t *testing.T) {
	g := routing(t)
	p := plan{first: []config.Destination{{CA: "Main", Weight: 3}, {CA: "Mail"}}, failover: []string{"Last", "Mail", "Nobody"}}
	first := map[string]int{}
	for i := range uint64(4000) {
		draw := binary.BigEndian.AppendUint64(nil, i*0x9e3779b97f4a7c15)
		list := names(g.signersFor(p, draw))
		if again := names(g.signersFor(p, draw)); !slices.Equal(list, again) {
			t.Fatalf("%q, and for the same request %q", list, again)
		}
		if len(list) != 3 || list[2] != "Last" {
			t.Fatalf("%q", list)
		}
		first[list[0]]++
	}
	if first["Main"] < 2900 || first["Main"] > 3100 {
		t.Errorf("%v, want 3 to 1", first)
	}
	if shares := p.shares(); shares[0] != (Share{"Main", 75}) || shares[1] != (Share{"Mail", 25}) || shares[2] != (Share{CA: "Last"}) {
		t.Errorf("%+v", shares)
	}
}
