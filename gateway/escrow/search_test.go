package escrow_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// put archives something under an owner and a subject, for a request with a certificate; it returns the record's number.
func (v *vault) put(t testing.TB, owner, subject, policy string, end time.Time) int64 {
	t.Helper()
	_, cert := testpki.Agent(t, owner, v.now.Add(-time.Hour), end)
	sealed := make([]byte, 2000)
	rand.Read(sealed)
	l := ledger.New(v.db, func() time.Time { return v.now })
	row := &ledger.Row{State: ledger.Open, Caller: owner, CallerSID: "S-1-5-21-1", SubjectSID: "S-1-5-21-1", Template: "Mail", CA: "Test CA", Archived: true,
		Fingerprint: cert.Raw[:32]}
	record := &escrow.Record{Source: "enrollment", Algorithm: "RSA", Bits: 2048, KeyID: sha(cert.RawSubjectPublicKeyInfo), Policy: policy, Required: 1,
		Format: escrow.FormatCMS, Recipients: []string{"x"}, Sealed: sealed}
	var id int64
	request, err := l.Begin(background, row, func(tx *sql.Tx, request int64) (err error) {
		id, err = record.Insert(tx, v.now, request, "gateway", owner, subject)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(background, request, "gateway", ledger.Result{State: ledger.Issued, Certificate: cert}); err != nil {
		t.Fatal(err)
	}
	return id
}

// people are archived keys: two of alice's, two days apart, one of bob's, of somebody whose name begins like alice's, and one
// that was imported another two days later.
type people struct {
	*vault
	begin                       time.Time
	a1, a2, bob, like, imported int64
	agentKey                    *rsa.PrivateKey
	agent                       *x509.Certificate
}

func newPeople(t testing.TB) *people {
	t.Helper()
	v := newVault(t)
	p := &people{vault: v, begin: v.now}
	year := v.now.AddDate(1, 0, 0)
	p.a1 = v.put(t, "alice@LAB.TEST", "CN=Alice Adams,OU=Sales,DC=lab,DC=test", "default", year)
	p.bob = v.put(t, "bob@LAB.TEST", "CN=Bob Baker,OU=Sales,DC=lab,DC=test", "executives", year)
	v.now = v.now.Add(48 * time.Hour)
	p.a2 = v.put(t, "Alice@LAB.TEST", "CN=Alice Adams,OU=Board,DC=lab,DC=test", "executives", year)
	p.like = v.put(t, "alicea@LAB.TEST", "CN=Jürgen Ähre", "default", year)
	v.now = v.now.Add(48 * time.Hour)
	key, cert := testpki.Agent(t, "old", v.now.Add(-time.Hour), year)
	p.agentKey, p.agent = testpki.Agent(t, "kra", v.now.Add(-time.Hour), year)
	if err := v.AddAgent(background, p.agent, "test"); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.imported, err = v.Import(background, key, cert, escrow.Owner{Name: "carol"}, "test"); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *people) serial(t testing.TB, id int64) string {
	t.Helper()
	e, err := p.Get(background, id)
	if err != nil || e.Serial == "" || e.Sealed() == nil {
		t.Fatalf("%+v, %v", e, err)
	}
	return e.Serial
}

func TestArchivedKeysAreFound(t *testing.T) {
	p := newPeople(t)
	a1, a2, b, other, imported, begin := p.a1, p.a2, p.bob, p.like, p.imported, p.begin
	for name, c := range map[string]struct {
		q    escrow.Query
		want []int64
	}{
		"everything":            {escrow.Query{}, []int64{imported, other, a2, b, a1}},
		"an account":            {escrow.Query{Owner: "alice"}, []int64{a2, a1}},
		"an account in full":    {escrow.Query{Owner: "ALICE@lab.test"}, []int64{a2, a1}},
		"the beginning":         {escrow.Query{Owner: "ali*"}, []int64{other, a2, a1}},
		"a name without a part": {escrow.Query{Owner: "carol"}, []int64{imported}},
		"a percent sign":        {escrow.Query{Owner: "ali%"}, nil},
		"a word":                {escrow.Query{Subject: "adams"}, []int64{a2, a1}},
		"words":                 {escrow.Query{Subject: "SALES alice"}, []int64{a1}},
		"words as written":      {escrow.Query{Subject: "CN=Alice Adams,OU=Board"}, []int64{a2}},
		"a part of a word":      {escrow.Query{Subject: "ada"}, nil},
		"not only ASCII":        {escrow.Query{Subject: "ähre JÜRGEN"}, []int64{other}},
		"a serial number":       {escrow.Query{Serial: p.serial(t, b)}, []int64{b}},
		"an imported one":       {escrow.Query{Serial: "00" + p.serial(t, imported)}, []int64{imported}},
		"a policy":              {escrow.Query{Policy: "executives"}, []int64{a2, b}},
		"since":                 {escrow.Query{Since: begin.Add(time.Hour)}, []int64{imported, other, a2}},
		"until":                 {escrow.Query{Until: begin.Add(time.Hour)}, []int64{b, a1}},
		"all together":          {escrow.Query{Owner: "alice", Subject: "board", Policy: "executives", Since: begin.Add(time.Hour), Serial: p.serial(t, a2)}, []int64{a2}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 2, 10} {
				if got := pages(t, p.vault, c.q, size); !slices.Equal(got, c.want) {
					t.Errorf("pages of %d: %v, want %v", size, got, c.want)
				}
			}
		})
	}
}

func TestAListDoesNotReadWhatIsSealed(t *testing.T) {
	p := newPeople(t)
	for _, q := range []escrow.Query{{Serial: "xyz"}, {Subject: "CN="}} {
		if _, err := p.Search(background, q); err == nil {
			t.Errorf("%+v was looked for", q)
		}
	}
	list, err := p.Search(background, escrow.Query{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Sealed() != nil {
			t.Errorf("the list has read what is sealed of key %d", e.ID)
		}
		if _, err := e.Certificate(); err != nil {
			t.Error(err)
		}
	}
	entry, err := p.BySerial(background, p.serial(t, p.imported))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Recover(background, entry, p.agentKey, p.agent, "test", "found by its serial number"); err != nil {
		t.Error(err)
	}
}

// pages reads a list in pages of a size.
func pages(t testing.TB, v *vault, q escrow.Query, size int) (ids []int64) {
	t.Helper()
	q.Limit = size
	for {
		list, err := v.Search(background, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			ids = append(ids, e.ID)
		}
		if len(list) < size {
			return ids
		}
		if q.After = list[len(list)-1].ID; len(ids) > 100 {
			t.Fatal(fmt.Sprint("the pages have no end: ", ids))
		}
	}
}
