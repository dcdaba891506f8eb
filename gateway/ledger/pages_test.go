package ledger_test

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// oneOfEach records a request of each kind.
func oneOfEach(t *testing.T, l *ledger.Ledger, cert *x509.Certificate) (open, pending, issued, failed, denied, revoked int64) {
	t.Helper()
	finish := func(id int64, r ledger.Result) int64 {
		t.Helper()
		if err := l.Finish(background, id, "test", r); err != nil {
			t.Fatal(err)
		}
		return id
	}
	open, pending = begin(t, l, ledger.Open), begin(t, l, ledger.Pending)
	issued = finish(begin(t, l, ledger.Open), ledger.Result{State: ledger.Issued, Certificate: cert})
	failed = finish(begin(t, l, ledger.Open), ledger.Result{State: ledger.Failed, HResult: hresult.Unexpected, Certificate: cert})
	denied = begin(t, l, ledger.Denied)
	revoked = finish(begin(t, l, ledger.Open), ledger.Result{State: ledger.Issued, Certificate: cert})
	if err := l.Revoked(background, revoked, "test", 1, ""); err != nil {
		t.Fatal(err)
	}
	return open, pending, issued, failed, denied, revoked
}

func TestPagesHaveWhatIsAskedFor(t *testing.T) {
	l := ledger.New(testpki.DB(t), time.Now)
	end := time.Now().AddDate(0, 0, 9).Truncate(time.Second)
	_, cert := testpki.Agent(t, "x", time.Now(), end)
	open, pending, issued, failed, denied, revoked := oneOfEach(t, l, cert)
	all := []int64{open, pending, issued, failed, denied, revoked}
	if last, err := l.LastID(background); err != nil || last != revoked {
		t.Error(last, err)
	}
	for name, c := range map[string]struct {
		q    ledger.Query
		want []int64
	}{
		"all":            {ledger.Query{}, all},
		"of no kind":     {ledger.Query{Kinds: []ledger.Kind{}}, nil},
		"queued":         {ledger.Query{Kinds: []ledger.Kind{ledger.KindQueued}}, []int64{open}},
		"pending":        {ledger.Query{Kinds: []ledger.Kind{ledger.KindPending}}, []int64{pending}},
		"issued":         {ledger.Query{Kinds: []ledger.Kind{ledger.KindIssued}}, []int64{issued}},
		"revoked":        {ledger.Query{Kinds: []ledger.Kind{ledger.KindRevoked}}, []int64{revoked}},
		"refused":        {ledger.Query{Kinds: []ledger.Kind{ledger.KindFailed, ledger.KindDenied}}, []int64{failed, denied}},
		"between":        {ledger.Query{First: pending, Last: failed}, []int64{pending, issued, failed}},
		"newest first":   {ledger.Query{Descending: true, Limit: 2}, []int64{revoked, denied}},
		"after some":     {ledger.Query{Skip: 4}, []int64{denied, revoked}},
		"a caller's":     {ledger.Query{Caller: "S-1-5-21-1", Limit: 1}, []int64{open}},
		"another's":      {ledger.Query{Caller: "S-1-5-21-2"}, nil},
		"of a template":  {ledger.Query{Template: "T", Last: open}, []int64{open}},
		"of no template": {ledger.Query{Template: "U"}, nil},
		"by serial":      {ledger.Query{Serial: ledger.SerialText(cert), Kinds: []ledger.Kind{ledger.KindIssued}}, []int64{issued}},
		"ends then":      {ledger.Query{EndFrom: end, EndTo: end}, []int64{issued, failed, revoked}},
		"ends before":    {ledger.Query{EndTo: end.Add(-time.Second)}, nil},
		"came before":    {ledger.Query{SubmittedTo: time.Now().Add(-time.Hour)}, nil},
		"came since":     {ledger.Query{SubmittedFrom: time.Now().Add(-time.Hour)}, all},
		"of another CA":  {ledger.Query{CA: "D"}, nil},
	} {
		if c.q.CA == "" {
			c.q.CA = "C"
		}
		if c.q.Limit == 0 {
			c.q.Limit = 100
		}
		rows, err := l.Page(background, c.q)
		var got []int64
		for _, r := range rows {
			got = append(got, r.ID)
			if len(c.q.Kinds) == 1 && r.KindOf() != c.q.Kinds[0] {
				t.Errorf("%s: %s", name, r.KindOf())
			}
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
}
