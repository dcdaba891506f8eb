package coverage_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

// office is a ledger and an escrow, in which two of two agents open what is archived.
type office struct {
	escrow *escrow.Escrow
	ledger *ledger.Ledger
	db     *store.DB
	agents []*x509.Certificate
	serial int64
	key    *rsa.PrivateKey // of a CA
}

func newOffice(t testing.TB) *office {
	t.Helper()
	o := &office{db: testpki.DB(t), key: testpki.RSA(t, 2048), serial: 1000}
	o.ledger = ledger.New(o.db, time.Now)
	var err error
	if o.escrow, err = escrow.New(background, escrow.Options{DB: o.db, Secret: []byte("test secret"), Now: time.Now, Policies: []escrow.Policy{
		{Name: "mail", Agents: []string{escrow.AllAgents}, Required: 2, Minimum: 2, Managers: []string{"m"}, Approvers: []string{"a"}}}}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		_, cert := testpki.Agent(t, fmt.Sprintf("kra%d", i+1), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
		if err := o.escrow.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
		o.agents = append(o.agents, cert)
	}
	return o
}

// certify makes a certificate for e-mail protection, with changes.
func (o *office) certify(t testing.TB, pub any, change func(c *x509.Certificate)) *x509.Certificate {
	t.Helper()
	o.serial++
	c := &x509.Certificate{SerialNumber: big.NewInt(o.serial), Subject: pkix.Name{CommonName: "Alice"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, &x509.Certificate{Subject: pkix.Name{CommonName: "Test CA"}}, pub, o.key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

// issue records that a certificate was issued.
func (o *office) issue(t testing.TB, account, template string, cert *x509.Certificate) int64 {
	t.Helper()
	print := sha256.Sum256(cert.Raw)
	id, err := o.ledger.Begin(background, &ledger.Row{State: ledger.Open, Caller: account + "@LAB.TEST", CallerSID: "S-1-5-21-1", SubjectSID: "S-1-5-21-1", Template: template, CA: "Test CA", Fingerprint: print[:]}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.ledger.Finish(background, id, "test", ledger.Result{State: ledger.Issued, Certificate: cert}); err != nil {
		t.Fatal(err)
	}
	return id
}

// archived issues a certificate whose key is in escrow.
func (o *office) archived(t testing.TB, account string) *x509.Certificate {
	t.Helper()
	key := testpki.RSA(t, 2048)
	cert := o.certify(t, key.Public(), nil)
	if _, err := o.escrow.Import(background, key, cert, escrow.Owner{Name: account + "@LAB.TEST"}, "test"); err != nil {
		t.Fatal(err)
	}
	o.issue(t, account, "Mail", cert)
	return cert
}

func (o *office) run(t testing.TB, change func(*coverage.Options)) (*coverage.Summary, []coverage.Certificate) {
	t.Helper()
	options := coverage.Options{DB: o.db, Ledger: o.ledger, Escrow: o.escrow, Now: time.Now()}
	if change != nil {
		change(&options)
	}
	var found []coverage.Certificate
	sum, err := coverage.Run(background, options, func(n coverage.Certificate) error { found = append(found, n); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return sum, found
}

func states(list []coverage.Certificate) (out []coverage.State) {
	for _, n := range list {
		out = append(out, n.State)
	}
	return out
}

func TestWhichCertificatesEncrypt(t *testing.T) {
	o := newOffice(t)
	point, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	purpose := func(oids ...asn1.ObjectIdentifier) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, oids }
	}
	microsoft := func(arcs ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311}, arcs...)
	}
	for _, c := range []struct {
		name string
		want bool
		with func(*x509.Certificate)
	}{
		{"e-mail protection, key encipherment", true, nil},
		{"e-mail protection, data encipherment", true, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDataEncipherment }},
		{"e-mail protection, key agreement", true, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }},
		{"e-mail protection, no key usage", true, func(c *x509.Certificate) { c.KeyUsage = 0 }},
		{"e-mail protection, signatures only", false, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }},
		{"no purposes", true, purpose()},
		{"any purpose", true, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
		{"any application policy", true, purpose(microsoft(10, 12, 1))},
		{"encrypting file system", true, purpose(microsoft(10, 3, 4))},
		{"file recovery", true, purpose(microsoft(10, 3, 4, 1))},
		{"document encryption", true, purpose(microsoft(80, 1))},
		{"BitLocker", true, purpose(microsoft(67, 1, 1))},
		{"TLS server", false, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
		{"TLS client", false, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }},
		{"TLS client and e-mail", true, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageEmailProtection}
		}},
		{"smart card logon", false, purpose(microsoft(20, 2, 2))},
		{"CA exchange", false, purpose(microsoft(21, 5))},
		{"key recovery agent", false, purpose(microsoft(21, 6))},
		{"key recovery agent and any", false, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, []asn1.ObjectIdentifier{microsoft(21, 6)}
		}},
		{"a CA", false, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }},
	} {
		if got := coverage.Encrypts(o.certify(t, point.Public(), c.with)); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestAttackDeletedRecordIsMissingFromTheCoverage(t *testing.T) {
	o := newOffice(t)
	o.archived(t, "alice")
	lost := o.archived(t, "bob")
	if sum, found := o.run(t, nil); sum.Attention() || len(found) != 2 || sum.Total.Held != 2 {
		t.Fatalf("%+v, %+v", sum, found)
	}
	id := sha256.Sum256(lost.RawSubjectPublicKeyInfo)
	for _, query := range []string{"DELETE FROM escrow_words WHERE record IN (SELECT id FROM escrow_records WHERE key_id = ?)", "DELETE FROM escrow_records WHERE key_id = ?"} {
		if _, err := o.db.SQL.Exec(query, id[:]); err != nil {
			t.Fatal(err)
		}
	}
	sum, found := o.run(t, nil)
	if !sum.Attention() || !slices.Equal(states(found), []coverage.State{coverage.Held, coverage.Missing}) || found[1].Owner != "bob@LAB.TEST" || found[1].Serial != ledger.SerialText(lost) {
		t.Errorf("%+v, %+v", sum, found)
	}
	if want := (coverage.Count{Template: "Mail", Held: 1, Missing: 1, Never: 1}); len(sum.Templates) != 1 || sum.Templates[0] != want {
		t.Errorf("%+v", sum.Templates)
	}
}

func TestAnEmptiedRecordIsMissingAndOneWithoutAgentsClosed(t *testing.T) {
	o := newOffice(t)
	o.archived(t, "alice")
	o.archived(t, "bob")
	if err := o.escrow.RemoveAgent(background, escrow.Fingerprint(o.agents[0]), "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.db.SQL.Exec("UPDATE escrow_records SET sealed = ? WHERE owner = 'alice@LAB.TEST'", []byte{}); err != nil {
		t.Fatal(err)
	}
	sum, found := o.run(t, nil)
	if !slices.Equal(states(found), []coverage.State{coverage.Missing, coverage.Closed}) || sum.Total.Closed != 1 || found[1].Why == "" || found[1].Required != 2 || len(found[1].Agents) != 1 {
		t.Errorf("%+v, %+v", sum, found)
	}
}

func TestWhatIsOverRevokedOrDoesNotEncryptIsNotLookedAt(t *testing.T) {
	o := newOffice(t)
	pub := testpki.RSA(t, 2048).Public()
	o.issue(t, "alice", "Mail", o.certify(t, pub, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
	o.issue(t, "alice", "Logon", o.certify(t, pub, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
	revoked := o.issue(t, "alice", "Mail", o.certify(t, pub, nil))
	if err := o.ledger.Revoked(background, revoked, "test", 1, ""); err != nil {
		t.Fatal(err)
	}
	if sum, found := o.run(t, nil); len(found) != 0 || sum.Attention() {
		t.Errorf("%+v", found)
	}
}

// A renewal that keeps its key needs no record of its own.
func TestARenewalWithTheSameKeyIsHeld(t *testing.T) {
	o := newOffice(t)
	cert := o.archived(t, "alice")
	o.issue(t, "alice", "Mail", o.certify(t, cert.PublicKey, nil))
	if _, found := o.run(t, nil); !slices.Equal(states(found), []coverage.State{coverage.Held, coverage.Held}) {
		t.Errorf("%+v", found)
	}
}

func TestTheDirectoryShowsForeignCertificatesAndTheOwnOnesOnce(t *testing.T) {
	o := newOffice(t)
	own := o.archived(t, "alice")
	foreignKey := testpki.RSA(t, 2048)
	foreign, archived := o.certify(t, testpki.RSA(t, 2048).Public(), nil), o.certify(t, foreignKey.Public(), nil)
	if _, err := o.escrow.Import(background, foreignKey, archived, escrow.Owner{Name: "bob@LAB.TEST"}, "test"); err != nil {
		t.Fatal(err)
	}
	publish := func(o *coverage.Options) {
		o.Published = func(_ context.Context, yield func(string, [][]byte) error) error {
			if err := yield("alice@LAB.TEST", [][]byte{own.Raw, foreign.Raw, []byte("no certificate")}); err != nil {
				return err
			}
			return yield("bob@LAB.TEST", [][]byte{archived.Raw})
		}
	}
	sum, found := o.run(t, publish)
	if !slices.Equal(states(found), []coverage.State{coverage.Held, coverage.Missing, coverage.Held}) || found[0].Foreign || !found[1].Foreign || !found[2].Foreign || sum.Unreadable != 1 {
		t.Errorf("%+v, %+v", sum, found)
	}
	if _, found := o.run(t, func(o *coverage.Options) { publish(o); o.Owner = "BOB" }); len(found) != 1 || found[0].Owner != "bob@LAB.TEST" {
		t.Errorf("%+v", found)
	}
}

// More certificates than a page has, some of them hidden between those that do not encrypt.
func TestEveryPageIsRead(t *testing.T) {
	o := newOffice(t)
	held := o.archived(t, "alice")
	plain := o.certify(t, held.PublicKey, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	if err := o.many(1300, func(i int) *x509.Certificate {
		if i%2 == 0 {
			return plain
		}
		return held
	}); err != nil {
		t.Fatal(err)
	}
	if sum, _ := o.run(t, nil); sum.Total.Held != 651 {
		t.Errorf("%+v", sum)
	}
}

// many writes issued certificates as fast as the database takes them.
func (o *office) many(n int, cert func(i int) *x509.Certificate) error {
	return o.db.Write(background, func(tx *sql.Tx) error {
		for i := range n {
			c := cert(i)
			if _, err := tx.Exec(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint, serial, certificate, not_after, profile, checks)
				VALUES ('issued', 0, 0, 'alice@LAB.TEST', 'S', 'S', 'Mail', 'Test CA', '', 1, ?, ?, ?, ?, '{}', '[]')`, []byte{0}, ledger.SerialText(c), c.Raw, c.NotAfter.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestTheWatcherCountsProofsAndTheLastVerification(t *testing.T) {
	o := newOffice(t)
	o.archived(t, "alice")
	o.archived(t, "bob")
	w := coverage.Watcher{Options: coverage.Options{DB: o.db, Ledger: o.ledger, Escrow: o.escrow}}
	pass := func() *coverage.Watched {
		t.Helper()
		found, err := w.Pass(background, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if f := pass(); f.Unproven != 2 || !f.Oldest.IsZero() || !f.Verified.IsZero() || f.Coverage.Total.Held != 2 {
		t.Errorf("%+v", f)
	}
	if _, err := o.db.SQL.Exec("UPDATE escrow_records SET proven = 1700000000000 WHERE owner = 'bob@LAB.TEST'"); err != nil {
		t.Fatal(err)
	}
	at := time.Now().UTC().Truncate(time.Millisecond)
	if err := o.db.Write(background, func(tx *sql.Tx) error {
		return audit.Append(tx, at, "test", audit.EscrowVerified, map[string]any{"records": 2, "bad": 1})
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if f := pass(); f.Unproven != 1 || f.Oldest.UnixMilli() != 1700000000000 || !f.Verified.Equal(at) || f.Bad != 1 {
			t.Errorf("%+v", f)
		}
	}
}
