package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/rpc/certadmin"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// managed is a backend over two CAs, on a ledger without anything.
func managed(t testing.TB) adminBackend {
	t.Helper()
	db := testpki.DB(t)
	g := &Gateway{DB: db, now: time.Now, Config: &config.Config{}, Ledger: ledger.New(db, time.Now), CAs: []*CA{{Name: "A"}, {Name: "B"}}, Directory: &nowhere{}}
	b := g.adminBackend()
	b.reading = make(chan struct{}, 1)
	return b
}

// nowhere is a directory that has one account, and managers.
type nowhere struct {
	Directory
	subject templates.Subject
	asked   int
}

func (nowhere) Snapshot() *templates.Snapshot { return nil }

func (nowhere) SIDsOf(context.Context, []string) ([]security.SID, error) {
	return []security.SID{"S-1-5-21-1-2-3-500"}, nil
}

func (n *nowhere) SubjectByName(context.Context, string) (templates.Subject, error) {
	n.asked++
	return n.subject, nil
}

// TestWhoIsManagerByTheTicketAloneReadsNothing: it may be of this morning, or of another domain.
func TestWhoIsManagerByTheTicketAloneReadsNothing(t *testing.T) {
	b := managed(t)
	now := time.Now()
	b.g.now = func() time.Time { return now }
	b.g.Config.CertificateManagers = []string{"managers"}
	directory := &nowhere{subject: templates.Subject{SID: "S-1-5-21-1-2-3-1001", Groups: []security.SID{"S-1-5-21-1-2-3-500"}, Domain: templates.Domain{DNS: "lab.test"}}}
	b.g.Directory = directory
	carol := templates.Caller{Principal: "carol@LAB.TEST", Realm: "LAB.TEST", SID: "S-1-5-21-1-2-3-1001", Groups: directory.subject.Groups}.WithToken()
	for range 5 {
		if is, err := b.Manager(t.Context(), carol); !is || err != nil || directory.asked != 1 {
			t.Fatal(is, err, directory.asked)
		}
	}
	bob := templates.Caller{Principal: "bob@LAB.TEST", Realm: "LAB.TEST", SID: "S-1-5-21-1-2-3-1002"}.WithToken()
	if is, err := b.Manager(t.Context(), bob); is || err != nil || directory.asked != 1 {
		t.Error("no manager", is, err, directory.asked)
	}
	foreign := carol
	foreign.Realm = "OTHER.TEST"
	if is, err := b.Manager(t.Context(), foreign); is || hresult.From(err).Code != hresult.AccessDenied {
		t.Error("a trusted domain's ticket names the account", is, err)
	}
	now = now.Add(confirmedFor)
	directory.subject.Groups = nil
	if is, err := b.Manager(t.Context(), carol); is || err != nil {
		t.Error("she is no manager any more", is, err)
	}
	directory.subject.Groups, directory.subject.Disabled = carol.Groups, true
	if is, err := b.Manager(t.Context(), carol); is || hresult.From(err).Code != hresult.AccountDisabled {
		t.Error("her account is disabled", is, err)
	}
}

func TestOfTwoCertificatesWithOneSerialNumberNoneIsRevoked(t *testing.T) {
	b := managed(t)
	_, cert := testpki.Agent(t, "x", time.Now(), time.Now().Add(time.Hour))
	serial := ledger.SerialText(cert)
	issue := func(state ledger.State, issuer string) {
		t.Helper()
		id, err := b.g.Ledger.Begin(t.Context(), &ledger.Row{State: ledger.Open, CA: "A", Issuer: issuer, Fingerprint: []byte(issuer), Caller: string(state)}, nil)
		if err == nil {
			err = b.g.Ledger.Finish(t.Context(), id, "test", ledger.Result{State: state, Certificate: cert})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	issue(ledger.Failed, "A") // it was not handed out, and is not found in the place of the one that was
	issue(ledger.Issued, "A")
	row, err := b.certificate(t.Context(), "A", serial)
	if err != nil || row.State != ledger.Issued {
		t.Fatal(row, err)
	}
	if _, err := b.certificate(t.Context(), "B", serial); hresult.From(err).Code != hresult.InvalidArg {
		t.Errorf("asked through another CA: %v", err)
	}
	issue(ledger.Issued, "other")
	if row, err := b.certificate(t.Context(), "A", serial); hresult.From(err).Code != hresult.InvalidArg || !strings.Contains(err.Error(), `"A" and "other"`) {
		t.Errorf("%+v, %v", row, err)
	}
}

func TestOfSeveralCAsNoneIsMeantByNothing(t *testing.T) {
	b := managed(t)
	if ca := b.CA(""); ca != "" {
		t.Errorf("%q", ca)
	}
	if ca := b.CA("b"); ca != "B" {
		t.Errorf("%q", ca)
	}
	if b.g.CAs = b.g.CAs[:1]; b.CA("") != "A" {
		t.Error("the only one is not meant")
	}
}

func TestWhoReadsManyRequestsDoesNotKeepOthersWaitingForEver(t *testing.T) {
	b := managed(t)
	b.reading <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Rows(ctx, certadmin.Query{CA: "A", Limit: 1}); hresult.From(err).Code != hresult.ServerTooBusy {
		t.Error(err)
	}
	<-b.reading
	if rows, err := b.Rows(t.Context(), certadmin.Query{CA: "A", Limit: 1}); err != nil || len(rows) != 0 || len(b.reading) != 0 {
		t.Error(rows, err)
	}
}
