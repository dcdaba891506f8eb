package e2e

import (
	"context"
	"math/big"
	"os"
	"sync/atomic"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// wayward is a CA that issues something else than it was asked for, or gives no answer.
type wayward struct {
	upstream.Issuer
	change  func(*upstream.Order)
	silent  atomic.Bool
	revoked *big.Int
}

func (c *wayward) Submit(ctx context.Context, o upstream.Order) (upstream.Result, error) {
	if c.silent.Load() {
		return upstream.Result{}, os.ErrDeadlineExceeded
	}
	if c.change != nil {
		c.change(&o)
	}
	return c.Issuer.Submit(ctx, o)
}

func (c *wayward) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	c.revoked = serial
	return c.Issuer.Revoke(ctx, serial, reason)
}

func TestACertificateThatDiffersFromTheDecisionIsNotHandedOut(t *testing.T) {
	w := world.Start(t)
	ca := &wayward{Issuer: w.CAs[0].Issuer}
	w.CAs[0].Issuer = ca
	alice := w.Client(t, "alice")
	for name, change := range map[string]func(*upstream.Order){
		"another subject":      func(o *upstream.Order) { o.Profile.Subject = []byte{0x30, 0} },
		"a longer life":        func(o *upstream.Order) { o.Profile.NotAfter = o.Profile.NotAfter.AddDate(1, 0, 0) },
		"a missing extension":  func(o *upstream.Order) { o.Profile.Extensions = o.Profile.Extensions[1:] },
		"another key":          func(o *upstream.Order) { o.PublicKey = w.Agent.PublicKey },
		"a criticality change": func(o *upstream.Order) { o.Profile.Extensions[0].Critical = !o.Profile.Extensions[0].Critical },
	} {
		t.Run(name, func(t *testing.T) {
			ca.change, ca.revoked = func(o *upstream.Order) {
				p := o.Profile
				p.Extensions = append(p.Extensions[:0:0], p.Extensions...)
				o.Profile = p
				change(o)
			}, nil
			_, err := alice.Submit(t, first(world.Request(t, "LabUserAuth", nil)))
			wantFault(t, err, hresult.Unexpected, "another certificate than decided")
			if ca.revoked == nil {
				t.Error("it was not revoked")
			}
		})
	}
}

func TestARequestWhoseCAGaveNoAnswerIsResumed(t *testing.T) {
	w := world.Start(t)
	ca := &wayward{Issuer: w.CAs[0].Issuer}
	ca.silent.Store(true)
	w.CAs[0].Issuer = ca
	alice := w.Client(t, "alice")
	der, key := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	reply, err := alice.Submit(t, der)
	if err != nil || !reply.Pending {
		t.Fatalf("%+v, %v", reply, err)
	}
	rows, err := w.Ledger.Unfinished(background, 10)
	if err != nil || len(rows) != 1 || !rows[0].Archived {
		t.Fatalf("%v, %v", rows, err)
	}
	if entries, err := w.Escrow.List(background, "alice", 10); err != nil || len(entries) != 1 {
		t.Errorf("%d archived keys before the certificate exists, %v: the key must be in escrow first", len(entries), err)
	}
	ca.silent.Store(false)
	if _, err := w.DB.SQL.Exec("UPDATE requests SET updated = updated - 60000"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the resumed request", func() bool {
		reply, err = alice.Poll(t, reply.RequestID)
		return err == nil && !reply.Pending
	})
	if cert := testpki.Cert(t, reply.Certificate); !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("the certificate is for another key")
	}
}
