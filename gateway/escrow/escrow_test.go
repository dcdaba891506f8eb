package escrow_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
)

var background = context.Background()

var alice = escrow.Owner{Name: "alice@LAB.TEST", Template: "Mail"}

// vault is an escrow with a CA and a clock that the test moves.
type vault struct {
	*escrow.Escrow
	db  *store.DB
	ca  *local.CA
	now time.Time
}

func newVault(t testing.TB, change ...func(*escrow.Options)) *vault {
	t.Helper()
	v := &vault{db: testpki.DB(t), now: time.Now()}
	clock := func() time.Time { return v.now }
	v.ca = testpki.CA(t, v.db, clock)
	o := escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: clock}
	for _, c := range change {
		c(&o)
	}
	var err error
	if v.Escrow, err = escrow.New(background, o); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vault) exchange(t testing.TB) *x509.Certificate {
	t.Helper()
	cert, err := v.Exchange(background, "Test CA", v.ca.Identity())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// request is a CMC request with its key enclosed for the exchange certificate.
func request(t testing.TB, exchange *x509.Certificate) *wcce.Request {
	t.Helper()
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(t, 2048), Exchange: exchange})
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseRequest(der)
	if err != nil || r.ArchivedErr != nil {
		t.Fatal(err, r.ArchivedErr)
	}
	return r
}

// archive stores a request's key with a certificate, as the journey does.
func (v *vault) archive(t testing.TB, r *wcce.Request) *escrow.Entry {
	t.Helper()
	record, err := v.Open("Test CA", r, alice)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := v.ca.Submit(background, upstream.Order{ID: "1", PublicKey: r.CSR.PublicKey, Profile: templates.CertificateProfile{
		Subject: []byte{0x30, 0}, NotBefore: v.now, NotAfter: v.now.Add(time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	record.Certificate = issued.Certificate.Raw
	var id int64
	if err := v.db.Write(background, func(tx *sql.Tx) error {
		id, err = record.Insert(tx, v.now, 0, "test", "alice@LAB.TEST", "CN=Alice")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	entry, err := v.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func wantCode(t testing.TB, err error, code hresult.Code) {
	t.Helper()
	if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != code {
		t.Errorf("error %v, want %v", err, code)
	}
}

func TestWithoutAValidAgentNothingIsArchived(t *testing.T) {
	v := newVault(t)
	r := request(t, v.exchange(t))
	wantCode(t, v.Ready(), hresult.NoValidKRA)
	_, err := v.Open("Test CA", r, alice)
	wantCode(t, err, hresult.NoValidKRA)

	_, soon := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.Add(time.Hour))
	if err := v.AddAgent(background, soon, "test"); err != nil {
		t.Fatal(err)
	}
	if err := v.Ready(); err != nil {
		t.Errorf("with an agent: %v", err)
	}
	v.now = v.now.Add(2 * time.Hour)
	if err := v.Ready(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("with an expired agent: %v", err)
	}
}

func TestUnfitAgentsAreRefused(t *testing.T) {
	v := newVault(t)
	_, expired := testpki.Agent(t, "kra", v.now.Add(-2*time.Hour), v.now.Add(-time.Hour))
	for name, cert := range map[string]*x509.Certificate{"expired": expired, "without the purpose": v.ca.Certificate()} {
		if err := v.AddAgent(background, cert, "test"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAgentsRecoverWhatWasSealedToThem(t *testing.T) {
	v := newVault(t)
	key1, kra1 := testpki.Agent(t, "kra1", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	key2, kra2 := testpki.Agent(t, "kra2", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra1, "test"); err != nil {
		t.Fatal(err)
	}
	r := request(t, v.exchange(t))
	entry := v.archive(t, r)
	if err := v.AddAgent(background, kra2, "test"); err != nil {
		t.Fatal(err)
	}

	got, err := v.Recover(background, entry, key1, kra1, "test", "lost laptop")
	if err != nil {
		t.Fatal(err)
	}
	if signer, ok := got.Key.(*rsa.PrivateKey); !ok || !signer.PublicKey.Equal(r.CSR.PublicKey) {
		t.Error("another key came out")
	}
	// OpenSSL, with nothing but the agent's key, opens the record and finds the request's key.
	keyFile := testpki.PEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key1))
	blob, err := testpki.OpenSSL(t, entry.Sealed(), "cms", "-decrypt", "-inform", "DER", "-inkey", keyFile, "-recip", testpki.PEM(t, "CERTIFICATE", kra1.Raw))
	if err != nil {
		t.Fatal("OpenSSL cannot open the record")
	}
	public, err := testpki.OpenSSL(t, blob, "rsa", "-inform", "MSBLOB", "-pubout", "-in", "/dev/stdin")
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(public); !bytes.Equal(block.Bytes, r.CSR.RawSPKI) {
		t.Error("another key was archived")
	}

	if _, err := v.Recover(background, entry, key2, kra2, "test", "curious"); !errors.Is(err, escrow.ErrRefused) || !strings.Contains(err.Error(), "kra1") {
		t.Errorf("an agent that came later: %v", err)
	}
	if _, err := v.Recover(background, entry, key2, kra1, "test", "stolen certificate"); !errors.Is(err, escrow.ErrRefused) {
		t.Errorf("the certificate of one agent with the key of another: %v", err)
	}
	if _, err := v.Recover(background, entry, key1, kra1, "test", " "); err == nil {
		t.Error("recovered without a reason")
	}
	if err := v.RemoveAgent(background, escrow.Fingerprint(kra1), "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Recover(background, entry, key1, kra1, "test", "after dismissal"); !errors.Is(err, escrow.ErrRefused) {
		t.Errorf("a removed agent: %v", err)
	}
	events := map[audit.Event]int{}
	if err := audit.Each(background, v.db.SQL, 0, func(l audit.Line) error { events[l.Event]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if events[audit.KeyRecovered] != 1 || events[audit.RecoveryRefused] != 3 {
		t.Errorf("audit log: %v", events)
	}
}

func TestARecoveryThatCannotBeLoggedDoesNotHappen(t *testing.T) {
	v := newVault(t)
	key, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	entry := v.archive(t, request(t, v.exchange(t)))
	storetest.Fill(t, v.db, "audit")
	if got, err := v.Recover(background, entry, key, kra, "test", "reason"); err == nil || got != nil {
		t.Errorf("recovered although the audit log is not writable: %v", err)
	}
}

// refusals are requests with a flaw that only the exchange key's owner can see, by what is wrong with them.
func refusals(t testing.TB, v *vault) (good *wcce.Request, bad map[string]*wcce.Request) {
	t.Helper()
	_, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	exchange := v.exchange(t)
	good = request(t, exchange)
	seal := func(content []byte, to *x509.Certificate) []byte {
		sealed, err := wcce.Seal(content, wcce.OIDDESEDE3CBC, false, to)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	foreign, err := wcce.MarshalKeyBlob(testpki.RSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good.Archived.Raw)
	flipped[len(flipped)-1] ^= 1
	wrongKeyBlock := bytes.Clone(good.Archived.Raw)
	wrongKeyBlock[200] ^= 1
	bad = map[string]*wcce.Request{}
	for name, raw := range map[string][]byte{
		"another key than the request's": seal(foreign, exchange), "not a key blob": seal([]byte("hello"), exchange),
		"sealed to somebody else": seal(foreign, kra), "a flipped bit in the content": flipped, "a flipped bit in the key block": wrongKeyBlock,
		"not EnvelopedData": []byte("garbage"),
	} {
		r := *good
		r.Archived = &wcce.ArchivedKey{Raw: raw}
		bad[name] = &r
	}
	return good, bad
}

func TestEveryFailureBehindTheExchangeKeyLooksTheSame(t *testing.T) {
	v := newVault(t)
	good, bad := refusals(t, v)
	texts := map[string]bool{}
	for name, r := range bad {
		begin := time.Now()
		_, err := v.Open("Test CA", r, alice)
		if took := time.Since(begin); took < 99*time.Millisecond {
			t.Errorf("%s: refused after %s, which tells it from the others", name, took)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		wantCode(t, err, hresult.BadRequestKeyArchival)
		texts[hresult.From(err).ClientText()] = true
	}
	if len(texts) != 1 {
		t.Errorf("the client can tell the failures apart: %v", texts)
	}
	if _, err := v.Open("Other CA", good, alice); err == nil {
		t.Error("the exchange key of one CA opened a request to another")
	}
}

// BenchmarkRefusals shows whether the time of a refusal tells the failures apart: the kinds take turns, in random order,
// and each gets its median and the probability that it is slower than one of the others (0.5: a toss of a coin).
func BenchmarkRefusals(b *testing.B) {
	v := newVault(b)
	_, bad := refusals(b, v)
	names := slices.Sorted(maps.Keys(bad))
	const samples = 60
	took := map[string][]time.Duration{}
	for range samples {
		for _, i := range rand.Perm(len(names)) {
			begin := time.Now()
			_, err := v.Open("Test CA", bad[names[i]], alice)
			took[names[i]] = append(took[names[i]], time.Since(begin))
			if err == nil {
				b.Fatal("accepted")
			}
		}
	}
	for _, name := range names {
		slices.Sort(took[name])
		slower, pairs := 0.0, 0.0
		for _, other := range names {
			if other == name {
				continue
			}
			for _, x := range took[name] {
				for _, y := range took[other] {
					pairs++
					if x > y {
						slower++
					} else if x == y {
						slower += 0.5
					}
				}
			}
		}
		fmt.Printf("%-32s median %9.3f ms   slower than another: %.2f   (%d samples)\n", name, float64(took[name][samples/2].Microseconds())/1000, slower/pairs, samples)
	}
}

func TestExchangeKeysRotateAndStayUsableForAWhile(t *testing.T) {
	v := newVault(t)
	_, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	first := v.exchange(t)
	if !v.exchange(t).Equal(first) {
		t.Error("a second client got another certificate")
	}
	r := request(t, first)
	v.now = v.now.Add(6*24*time.Hour + time.Hour)
	second := v.exchange(t)
	if second.Equal(first) {
		t.Error("the certificate was not renewed before its end")
	}
	if _, err := v.Open("Test CA", r, alice); err != nil {
		t.Errorf("a request to the last certificate: %v", err)
	}
	v.now = first.NotAfter.Add(14*24*time.Hour + time.Hour)
	if _, err := v.Open("Test CA", r, alice); err == nil {
		t.Error("a request was opened after the grace period")
	}
	// A restart with the same secret finds the keys again; with another one it says so.
	v.now = v.now.Add(-20 * 24 * time.Hour)
	again, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("test secret"), Now: func() time.Time { return v.now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Open("Test CA", r, alice); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if _, err := escrow.New(background, escrow.Options{DB: v.db, Secret: []byte("another"), Now: func() time.Time { return v.now }}); err == nil {
		t.Error("exchange keys opened with the wrong secret")
	}
}

func TestTheExchangeCertificateHasTheShapeThatWindowsChecks(t *testing.T) {
	v := newVault(t)
	cert := v.exchange(t)
	if err := cert.CheckSignatureFrom(v.ca.Certificate()); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != "Test CA-Xchg" || cert.KeyUsage != x509.KeyUsageKeyEncipherment || len(cert.UnknownExtKeyUsage) != 1 ||
		cert.UnknownExtKeyUsage[0].String() != wcce.OIDCAExchange || len(cert.CRLDistributionPoints) != 1 {
		t.Errorf("%+v", cert)
	}
	if name, _ := templates.TemplateOf(cert); name != "CAExchange" {
		t.Errorf("template name %q", name)
	}
	if left := cert.NotAfter.Sub(v.now); left < 6*24*time.Hour || left > 8*24*time.Hour {
		t.Errorf("valid for %s", left)
	}
	if _, err := testpki.OpenSSL(t, nil, "verify", "-x509_strict", "-CAfile", testpki.PEM(t, "CERTIFICATE", v.ca.Certificate().Raw), testpki.PEM(t, "CERTIFICATE", cert.Raw)); err != nil {
		t.Error("OpenSSL does not accept it")
	}
}

func TestImportedKeysAreRecovered(t *testing.T) {
	v := newVault(t)
	agentKey, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	userKey, userCert := testpki.Agent(t, "user", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	id, err := v.Import(background, userKey, userCert, escrow.Owner{Name: "bob@LAB.TEST"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Import(background, userKey, userCert, escrow.Owner{Name: "bob@LAB.TEST"}, "test"); err == nil {
		t.Error("the same key was archived twice")
	}
	if _, err := v.Import(background, testpki.RSA(t, 2048), userCert, escrow.Owner{Name: "bob@LAB.TEST"}, "test"); err == nil {
		t.Error("a key was archived with a foreign certificate")
	}
	entry, err := v.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Recover(background, entry, agentKey, kra, "test", "drill")
	if err != nil || !userKey.Equal(got.Key) || !got.Certificate.Equal(userCert) {
		t.Errorf("recovered %v, %v", got, err)
	}
	list, err := v.List(background, "bob", 10)
	if err != nil || len(list) != 1 || list[0].Source != "import" {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestTheRecordedWindowsRequestIsArchivedAndRecovered(t *testing.T) {
	r, err := wcce.ParseRequest(vectors.Read(t, "ejbca/user-enroll-1.cmc.der"))
	if err != nil {
		t.Fatal(err)
	}
	v := newVault(t)
	agentKey, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open("Test CA", r, alice); err == nil {
		t.Fatal("opened before the exchange key was installed")
	}
	cert, key := vectors.ExchangeCertificate(t, r.Archived.Raw)
	if err := v.ImportExchange(background, "Test CA", cert, key, v.now.Add(time.Hour), "test"); err != nil {
		t.Fatal(err)
	}
	entry := v.archive(t, r)
	got, err := v.Recover(background, entry, agentKey, kra, "test", "drill")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(got.Key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "k")
	if _, err := testpki.OpenSSL(t, der, "pkey", "-inform", "DER", "-check", "-out", file); err != nil {
		t.Error("OpenSSL rejects the recovered key")
	}
}

func TestExchangeKeysAreDestroyedAfterTheirGracePeriod(t *testing.T) {
	v := newVault(t)
	_, kra := testpki.Agent(t, "kra", v.now.Add(-time.Hour), v.now.AddDate(1, 0, 0))
	if err := v.AddAgent(background, kra, "test"); err != nil {
		t.Fatal(err)
	}
	first := v.exchange(t)
	v.now = first.NotAfter.Add(14 * 24 * time.Hour)
	v.exchange(t)
	for range 2 {
		if err := v.DestroyExpired(background); err != nil {
			t.Fatal(err)
		}
	}
	var left, gone int
	if err := v.db.SQL.QueryRow("SELECT count(CASE WHEN destroyed = 0 THEN 1 END), count(CASE WHEN destroyed > 0 AND length(private_key) = 0 THEN 1 END) FROM exchange_keys").Scan(&left, &gone); err != nil || left != 1 || gone != 1 {
		t.Errorf("%d left, %d destroyed, %v", left, gone, err)
	}
	wantEvents(t, v, "exchange-key-destroyed", 1)
}

func wantEvents(t testing.TB, v *vault, event string, want int) {
	t.Helper()
	var n int
	if err := v.db.SQL.QueryRow("SELECT count(*) FROM audit WHERE event = ?", event).Scan(&n); err != nil || n != want {
		t.Errorf("%d lines %s, %v; want %d", n, event, err, want)
	}
}
