package batch_test

import (
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
)

// Agents get hybrid keys, the policy requires them, and what was archived before is sealed to them.
func TestOldRecordsAreSealedToHybridKeys(t *testing.T) {
	for _, required := range []int{1, 2} {
		a := newArchive(t, required)
		_, id := a.archive(t, "alice")
		keys := map[string]*quorum.AgentKey{}
		for i, n := range a.agents {
			h, private, err := quorum.NewHybridKey(n.cert, n.key, i == 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.escrow.AddHybridAgent(background, h, "test"); err != nil {
				t.Fatal(err)
			}
			keys[n.name] = quorum.NewAgentKey(n.cert, n.key, private)
		}
		a.policy.Hybrid = true
		a.open(t)
		s := a.rewrap(a.agents...)
		if d, err := a.Draft(background, who("helpdesk"), s); err == nil {
			t.Fatalf("records that are sealed to the agents already were chosen: %+v", d)
		}
		s.Again = true
		b, f := a.taken(t, s, a.agents[0])
		if !f.Statement.Order.Hybrid {
			t.Fatal("the order does not say that hybrid keys are required")
		}
		info := a.info(t, b, "kra1")
		attackHybridKeys(t, a, info, f)
		if required == 2 {
			a.consent(t, b, f, a.agents[1])
		}
		a.work(t, b, f, a.agents[0])
		e := a.entry(t, id)
		r, err := quorum.Parse(e.Sealed())
		if err != nil || e.Format != escrow.FormatShared || r.Required != required {
			t.Fatalf("%+v, %v", e, err)
		}
		var shares []*quorum.Share
		for i, n := range a.agents {
			if h := r.Holder(n.print()); h.Protection != map[bool]quorum.Protection{true: quorum.ByHybrid, false: quorum.ByBoth}[i == 0] {
				t.Errorf("the share of %s has protection %d", n.name, h.Protection)
			}
			if _, err := r.OpenShare(n.cert, n.key); err == nil {
				t.Errorf("the certificate's key of %s opens the share", n.name)
			}
			share, err := r.OpenShare(n.cert, keys[n.name])
			if err != nil {
				t.Fatal(err)
			}
			shares = append(shares, share)
		}
		if pkcs8, err := r.Combine(shares[:required]); err != nil || len(pkcs8) == 0 {
			t.Errorf("%d octets, %v", len(pkcs8), err)
		}

	}
}

// attackHybridKeys is a gateway in foreign hands that leaves hybrid keys out, or puts in its own.
func attackHybridKeys(t *testing.T, a *archive, info *recovery.BatchInfo, f *recovery.BatchFile) {
	t.Helper()
	less := *info
	less.Hybrid = info.Hybrid[1:]
	if _, err := recovery.NewWorker(&less, f, a.agents[0].key, a.now); err == nil || !strings.Contains(err.Error(), "has not sent the hybrid key") {
		t.Errorf("a hybrid key that was left out: %v", err)
	}
	forged := *info
	forged.Hybrid = append([]quorum.HybridKey{}, info.Hybrid...)
	forged.Hybrid[0].Public = info.Hybrid[1].Public
	if _, err := recovery.NewWorker(&forged, f, a.agents[0].key, a.now); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("a hybrid key of somebody else: %v", err)
	}
}
