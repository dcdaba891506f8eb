package gateway

import (
	"context"
	"crypto"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// broken is an identity of which signing panics.
type broken struct{ upstream.Identity }

func (broken) ResponseSigner(context.Context) (*x509.Certificate, crypto.Signer, crypto.Hash, error) {
	panic("the key is gone")
}

func TestAReplyThatCannotBeMadeFailsItsRequestAloneAndLosesNoCertificate(t *testing.T) {
	f := &fakeCA{real: testpki.CA(t, testpki.DB(t), time.Now), repetition: upstream.RepeatSame, next: func() fate { return fine }, issued: map[string][]string{}}
	d := newDesk(t, testpki.DB(t), time.Now, f)
	good := d.CAs[0].Identity
	d.CAs[0].Identity = broken{good}
	row := d.row(t, 0, []string{"CA0"})
	if err := d.begin(t.Context(), row, nil); err != nil {
		t.Fatal(err)
	}
	if reply, err := d.issue(t.Context(), d.CAs[0], row, true); reply != nil || err == nil || !strings.Contains(err.Error(), "the key is gone") {
		t.Errorf("%+v, %v", reply, err)
	}
	d.CAs[0].Identity = good
	stored, err := d.Ledger.Get(t.Context(), row.ID)
	if err != nil || stored.State != ledger.Issued {
		t.Fatalf("%+v, %v", stored, err)
	}
	if reply, err := d.reply(t.Context(), d.CAs[0], stored); err != nil || reply.Certificate == nil || len(reply.Full) == 0 {
		t.Errorf("%+v, %v", reply, err)
	}
}
