package bench

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/store/storetest"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// few and keysEach: how many archived keys the small archive has, and an account.
const few, keysEach = 1000, 4

// archive is a database full of archived keys.
type archive struct {
	db      *store.DB
	escrow  *escrow.Escrow
	request *wcce.Request // with a key enclosed for the escrow
	rows    int
	begin   time.Time // of filling: the newest key's time
	serial  []string  // of some certificates, all over the archive
}

// samples are what rows are made of: real sealed keys, certificates and requests, so that the size is right and any row can be
// recovered. What is the same in all of them is only in places that nothing is looked up by.
type samples struct {
	cms, shared *escrow.Record
	row         *ledger.Row
	certificate []byte
	key         *rsa.PrivateKey // of agent
	agent       *x509.Certificate
}

// BenchmarkKeys compares what archived keys cost among a thousand with what they cost among KEYS (a million), on SQLite or, with
// KEYS_ON=postgres, on PostgreSQL, which does not sync then. Without KEYS it does nothing: filling takes minutes.
func BenchmarkKeys(b *testing.B) {
	many, err := strconv.Atoi(os.Getenv("KEYS"))
	if err != nil {
		b.Skip("KEYS=1000000 says among how many")
	}
	open := func() *store.DB {
		return storetest.Again(b, storetest.Address(filepath.Join(b.TempDir(), "keys.db")))
	}
	if os.Getenv("KEYS_ON") == "postgres" {
		server := storetest.ForTest(b)
		open = func() *store.DB { return storetest.Again(b, server.New(b)) }
	}
	s := newSamples(b)
	small, large := newArchive(b, open(), s), newArchive(b, open(), s)
	small.fill(b, s, few)
	large.fill(b, s, many)
	large.size(b, s)
	fmt.Printf("\n%-44s %12s %12s %8s\n", "ms a run, the median", "1,000", comma(many), "ratio")
	var search, searchLarge float64
	for _, w := range works(b, s) {
		one, other := compare(b, w, small, large)
		if strings.HasPrefix(w.name, "search") {
			search, searchLarge = search+one, searchLarge+other
		}
	}
	fmt.Printf("%-44s %12.3f %12.3f %8.2f\n", "search: one of each kind", search, searchLarge, searchLarge/search)
}

func comma(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", comma(n/1000), n%1000)
}

const caName = "Bench CA"

func newArchive(b *testing.B, db *store.DB, s *samples) *archive {
	a := &archive{db: db}
	var err error
	if a.escrow, err = escrow.New(background, escrow.Options{DB: db, Secret: []byte("secret"), Now: time.Now}); err != nil {
		b.Fatal(err)
	}
	if err := a.escrow.AddAgent(background, s.agent, "bench"); err != nil {
		b.Fatal(err)
	}
	exchange, err := a.escrow.Exchange(background, caName, testpki.CA(b, testpki.DB(b), time.Now).Identity())
	if err != nil {
		b.Fatal(err)
	}
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(b, 2048), Exchange: exchange})
	if err != nil {
		b.Fatal(err)
	}
	if a.request, err = wcce.ParseRequest(der); err != nil {
		b.Fatal(err)
	}
	return a
}

// archiveOne does what an enrollment does with an enclosed key: opens it, checks it, seals it to the agents and stores it.
func (a *archive) archiveOne(i int) error {
	r, err := a.escrow.Open(caName, a.request, escrow.Owner{Name: owner(i)})
	if err != nil {
		return err
	}
	rand.Read(r.KeyID) // as if the key were another one each time
	return a.db.Write(background, func(tx *sql.Tx) error {
		_, err := r.Insert(tx, time.Now(), 0, "gateway", owner(i), subject(i))
		return err
	})
}

func newSamples(b *testing.B) *samples {
	s := &samples{}
	now := time.Now()
	s.key, s.agent = testpki.Agent(b, "Kate Kra", now.Add(-time.Hour), now.AddDate(1, 0, 0))
	_, second := testpki.Agent(b, "Karl Kra", now.Add(-time.Hour), now.AddDate(1, 0, 0))
	key := testpki.RSA(b, 2048)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	s.certificate, s.row = issue(b, key)
	keyID := sha256.Sum256([]byte("key"))
	agents := []*x509.Certificate{s.agent, second}
	record := escrow.Record{Source: "enrollment", Algorithm: "RSA", Bits: 2048, Policy: "default", Required: 1, Format: escrow.FormatCMS,
		Recipients: []string{escrow.Fingerprint(s.agent), escrow.Fingerprint(second)}}
	s.cms, s.shared = &record, new(escrow.Record)
	*s.shared = record
	s.shared.Format, s.shared.Required, s.shared.Policy = escrow.FormatShared, 2, "executives"
	if s.cms.Sealed, err = wcce.Seal(pkcs8, wcce.OIDAES256CBC, true, agents...); err != nil {
		b.Fatal(err)
	}
	s.shared.Sealed, err = quorum.Seal(pkcs8, quorum.Terms{KeyID: keyID[:], Owner: owner(0), Policy: "executives", Required: 2}, quorum.Certificates(agents...))
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func owner(i int) string { return fmt.Sprintf("user%07d@CORP.EXAMPLE", i/keysEach) }

func subject(i int) string {
	return fmt.Sprintf("CN=Given%d Person%07d,OU=%s,OU=Staff,DC=corp,DC=example", i%300, i/keysEach, []string{"Sales", "Board", "Works"}[i%3])
}

// record is the i-th key.
func (s *samples) record(i int) *escrow.Record {
	r := *s.cms
	if i%2 == 1 {
		r = *s.shared
	}
	r.KeyID = make([]byte, sha256.Size)
	rand.Read(r.KeyID)
	r.Owner = owner(i)
	return &r
}

// fill archives keys with their requests and lines in the audit log, many in one transaction.
func (a *archive) fill(b *testing.B, s *samples, n int) {
	profile, err := json.Marshal(s.row.Profile)
	if err != nil {
		b.Fatal(err)
	}
	checks, err := json.Marshal(s.row.Checks)
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	a.begin = begin
	now := begin.Add(-time.Duration(n) * time.Second)
	for a.rows < n {
		if err := a.db.Write(background, func(tx *sql.Tx) error {
			if a.db.Kind == store.SQLite { // rows meet all leaves of some indexes: these stay in memory for the while
				if _, err := tx.Exec("PRAGMA cache_size = -1000000"); err != nil {
					return err
				}
				defer tx.Exec("PRAGMA cache_size = -16000")
			}
			for range min(50000, n-a.rows) {
				i := a.rows
				var id int64
				fingerprint, r := make([]byte, 32), s.record(i)
				rand.Read(fingerprint)
				at := now.Add(time.Duration(i) * time.Second)
				if err := tx.QueryRow(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint, csr, profile,
					checks, key_hash, serial, certificate, not_after, key_id) VALUES ('issued', ?, ?, ?, ?, ?, 'UserSMIME', 'CA', 'kerberos', 1, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`,
					at.UnixMilli(), at.UnixMilli(), r.Owner, sid(i), sid(i), fingerprint, s.row.CSR, string(profile), string(checks), fingerprint[:20],
					new(big.Int).SetBytes(fingerprint[:16]).Text(16), s.certificate, at.AddDate(1, 0, 0).UnixMilli(), r.KeyID).Scan(&id); err != nil {
					return err
				}
				if _, err := r.Insert(tx, at, id, "gateway", r.Owner, subject(i)); err != nil {
					return err
				}
				a.rows++
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		if a.rows%100000 == 0 {
			fmt.Printf("filled %s of %s in %s\n", comma(a.rows), comma(n), time.Since(begin).Round(time.Second))
		}
	}
	statement := "PRAGMA wal_checkpoint(TRUNCATE)"
	if a.db.Kind == store.Postgres {
		statement = "VACUUM ANALYZE"
	}
	if _, err := a.db.SQL.Exec(statement); err != nil {
		b.Fatal(err)
	}
}

func sid(i int) string {
	return fmt.Sprintf("S-1-5-21-1004336348-1177238915-682003330-%d", 1000+i/keysEach)
}

// size prints how many octets a key takes on disk.
func (a *archive) size(b *testing.B, s *samples) {
	query := "SELECT coalesce(m.tbl_name, s.name), sum(s.pgsize) FROM dbstat s LEFT JOIN sqlite_master m ON m.name = s.name GROUP BY 1"
	if a.db.Kind == store.Postgres {
		query = "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
	}
	rows, err := a.db.SQL.Query(query)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	octets := map[string]int64{}
	for rows.Next() {
		var name string
		var n int64
		if err := rows.Scan(&name, &n); err != nil {
			b.Fatal(err)
		}
		octets[name] = n / int64(a.rows)
	}
	key := octets["escrow_records"] + octets["escrow_words"]
	fmt.Printf("\noctets a key: %d in escrow (records %d, of which sealed %d and %d in the two formats; words %d); beside it the request with the certificate %d, the audit log %d\n",
		key, octets["escrow_records"], len(s.cms.Sealed), len(s.shared.Sealed), octets["escrow_words"], octets["requests"], octets["audit"])
}

// work is something that is done to an archive.
type work struct {
	name string
	runs int // in one round
	do   func(a *archive, run int) error
}

// searches want as many keys from both archives.
func searches() map[string]struct {
	q    escrow.Query
	want int
} {
	return map[string]struct {
		q    escrow.Query
		want int
	}{
		"list: the newest 100":                  {escrow.Query{Limit: 100}, 100},
		"list: an account's keys":               {escrow.Query{Owner: "user0000123", Limit: 100}, keysEach},
		"search: accounts by their beginning":   {escrow.Query{Owner: "user000012*", Limit: 100}, 10 * keysEach},
		"search: a word of few subjects":        {escrow.Query{Subject: "person0000123", Limit: 100}, keysEach},
		"search: a word of many subjects":       {escrow.Query{Subject: "sales", Limit: 100}, 100},
		"search: many subjects' word and few's": {escrow.Query{Subject: "staff person0000123", Limit: 100}, keysEach},
		"search: a policy":                      {escrow.Query{Policy: "executives", Limit: 100}, 100},
		"search: since a time":                  {escrow.Query{Since: time.Unix(1, 0), Limit: 100}, 100}, // five minutes before the newest
		"list: a page from the middle":          {escrow.Query{After: 500, Limit: 100}, 100},
	}
}

func works(b *testing.B, s *samples) []work {
	var next sync.Mutex // guards number
	number := map[*archive]int{}
	archiveOne := func(a *archive, _ int) error {
		next.Lock()
		number[a]++
		i := a.rows + number[a]
		next.Unlock()
		return a.archiveOne(i)
	}
	out := []work{
		{"get", 200, func(a *archive, run int) error { _, err := a.escrow.Get(background, a.some(run)); return err }},
		{"recover: any agent", 50, func(a *archive, run int) error { return s.recover(a, a.some(run)|1) }},
		{"recover: an agent's share", 50, func(a *archive, run int) error { return s.share(a, a.some(run)&^1+2) }},
		{"search: a serial number", 100, bySerial},
	}
	all := searches()
	names := []string{}
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := all[name]
		out = append(out, work{name, 100, func(a *archive, _ int) error {
			q := c.q
			if !q.Since.IsZero() {
				q.Since = a.begin.Add(-5 * time.Minute)
			}
			list, err := a.escrow.Search(background, q)
			if err == nil && len(list) != c.want {
				err = fmt.Errorf("%d keys, want %d", len(list), c.want)
			}
			return err
		}})
	}
	// At last, for they add to the archives.
	return append(out, work{"archive, one after the other", 50, archiveOne},
		work{"archive, 64 at a time", 2, func(a *archive, run int) error { return together(64, func() error { return archiveOne(a, run) }) }})
}

// some is the number of one key of all, another one each time.
func (a *archive) some(run int) int64 { return 1 + int64(run+1)*7919%int64(a.rows-2) }

func together(n int, do func() error) error {
	errs := make(chan error, n)
	for range n {
		go func() { errs <- do() }()
	}
	for range n {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func (s *samples) recover(a *archive, id int64) error {
	entry, err := a.escrow.Get(background, id)
	if err != nil {
		return err
	}
	_, err = a.escrow.Recover(background, entry, s.key, s.agent, "bench", "bench")
	return err
}

func (s *samples) share(a *archive, id int64) error {
	entry, err := a.escrow.Get(background, id)
	if err != nil {
		return err
	}
	r, err := quorum.Parse(entry.Sealed())
	if err != nil {
		return err
	}
	share, err := r.OpenShare(s.agent, s.key)
	if err == nil {
		share.Wipe()
	}
	return err
}

func bySerial(a *archive, run int) error {
	for len(a.serial) < 500 {
		var serial string
		if err := a.db.SQL.QueryRow("SELECT serial FROM requests WHERE id = ?", a.some(7*len(a.serial))).Scan(&serial); err != nil {
			return err
		}
		a.serial = append(a.serial, serial)
	}
	serial := a.serial[run%len(a.serial)]
	list, err := a.escrow.Search(background, escrow.Query{Serial: serial, Limit: 10})
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%d keys with serial number %s", len(list), serial)
	}
	return err
}

const rounds = 15

// compare does the same to both archives in turn, and prints and returns the medians.
func compare(b *testing.B, w work, small, large *archive) (one, other float64) {
	times := map[*archive][]time.Duration{}
	for round := range rounds {
		for _, a := range []*archive{small, large} {
			for run := range w.runs {
				begin := time.Now()
				if err := w.do(a, round*w.runs+run); err != nil {
					b.Fatalf("%s: %v", w.name, err)
				}
				if round > 0 { // the first one is to get warm
					times[a] = append(times[a], time.Since(begin))
				}
			}
		}
	}
	median := func(a *archive) float64 {
		slices.Sort(times[a])
		return ms(times[a][len(times[a])/2])
	}
	one, other = median(small), median(large)
	fmt.Printf("%-44s %12.3f %12.3f %8.2f\n", w.name, one, other, other/one)
	return one, other
}

// issue makes a certificate and a row of the ledger as a real enrollment has them.
func issue(b *testing.B, key *rsa.PrivateKey) ([]byte, *ledger.Row) {
	db := testpki.DB(b)
	ca := testpki.CA(b, db, time.Now)
	now := time.Now()
	profile := templates.CertificateProfile{Template: "UserSMIME", Subject: []byte{0x30, 0}, SubjectText: subject(0), NotBefore: now, NotAfter: now.AddDate(1, 0, 0)}
	for _, oid := range []string{"1.3.6.1.4.1.311.21.7", "2.5.29.37", "2.5.29.15", "1.3.6.1.4.1.311.21.10", "1.2.840.113549.1.9.15"} {
		profile.Extensions = append(profile.Extensions, templates.Extension{OID: oid, Value: make([]byte, 40)})
	}
	row := &ledger.Row{Profile: profile}
	for i := range 12 {
		row.Checks = append(row.Checks, templates.Check{Name: fmt.Sprintf("check-%d", i), Pass: true, Reason: "the caller has the right to enroll", Spec: "[MS-WCCE] 3.2.2.6.2.1.4.3"})
	}
	var err error
	if row.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		b.Fatal(err)
	}
	profile.Extensions = nil
	issued, err := ca.Issuer().Submit(context.Background(), upstream.Order{ID: "1", CSR: row.CSR, PublicKey: key.Public(), Profile: profile})
	if err != nil || issued.Certificate == nil {
		b.Fatal(err, issued.Reason)
	}
	return issued.Certificate.Raw, row
}
