package ledger_test

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what Windows finds certificates by
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// ofUser is a certificate with a common name and a user principal name.
func ofUser(t testing.TB, name, upn string) *x509.Certificate {
	t.Helper()
	type otherName struct {
		OID   asn1.ObjectIdentifier
		Value string `asn1:"explicit,tag:0,utf8"`
	}
	other, err := asn1.MarshalWithParams(otherName{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, upn}, "tag:0")
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{FullBytes: other}})
	if err != nil {
		t.Fatal(err)
	}
	key := testpki.RSA(t, 2048)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), SubjectKeyId: []byte(name), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return testpki.Cert(t, der)
}

func TestCertificatesAreFoundByTheirNames(t *testing.T) {
	db := testpki.DB(t)
	l := ledger.New(db, time.Now)
	issue := func(state ledger.State, c *x509.Certificate) int64 {
		t.Helper()
		id := begin(t, l, ledger.Open)
		if err := l.Finish(background, id, "test", ledger.Result{State: state, Certificate: c}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	alice, again, bob := ofUser(t, "Alice Ärmel", "alice@lab.test"), ofUser(t, "alice ärmel", "Alice2@lab.test"), ofUser(t, "Bob", "bob@lab.test")
	first, second, third := issue(ledger.Issued, alice), issue(ledger.Issued, again), issue(ledger.Issued, bob)
	issue(ledger.Failed, bob) // was not handed out
	if err := l.Revoked(background, second, "test", 1, ""); err != nil {
		t.Fatal(err)
	}
	hash := fmt.Sprintf("%X", sha1.Sum(bob.Raw)) //nolint:gosec // what it is
	check := func(when string) {
		t.Helper()
		for name, c := range map[string]struct {
			q    ledger.Query
			want []int64
		}{
			"the common name":       {ledger.Query{CommonName: "ALICE ÄRMEL"}, []int64{first, second}},
			"from there":            {ledger.Query{CommonName: "alice ärmel", First: second}, []int64{second}},
			"the newest first":      {ledger.Query{CommonName: "alice ärmel", Descending: true}, []int64{second, first}},
			"valid ones":            {ledger.Query{CommonName: "alice ärmel", Kinds: []ledger.Kind{ledger.KindIssued}}, []int64{first}},
			"a part of a name":      {ledger.Query{CommonName: "alice"}, nil},
			"a pattern":             {ledger.Query{CommonName: "alice%"}, nil},
			"the UPN":               {ledger.Query{UPN: "ALICE@lab.test"}, []int64{first}},
			"both":                  {ledger.Query{UPN: "alice2@LAB.test", CommonName: "alice ärmel"}, []int64{second}},
			"both, of two":          {ledger.Query{UPN: "alice@lab.test", CommonName: "bob"}, nil},
			"the key":               {ledger.Query{SubjectKeyID: fmt.Sprintf("%X", "Bob")}, []int64{third}},
			"the hash":              {ledger.Query{Hash: hash}, []int64{third}},
			"the name in another":   {ledger.Query{CA: "D", CommonName: "bob"}, nil},
			"with another's number": {ledger.Query{Hash: hash, Caller: "S-1-5-21-2"}, nil},
		} {
			if c.q.CA == "" {
				c.q.CA = "C"
			}
			c.q.Limit = 10
			rows, err := l.Page(background, c.q)
			var got []int64
			for _, r := range rows {
				got = append(got, r.ID)
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s, %s: %v, %v, want %v", when, name, got, err, c.want)
			}
		}
	}
	check("as issued")
	if _, err := db.SQL.Exec("UPDATE requests SET common_name = '', upn = '', certificate_hash = '', subject_key_id = ''"); err != nil {
		t.Fatal(err)
	}
	check("recorded by an earlier version")
}

// TestNamesAreFoundByIndexes asks the database how it looks for them.
func TestNamesAreFoundByIndexes(t *testing.T) {
	db := testpki.DB(t)
	if db.Kind != store.SQLite {
		t.Skip("what PostgreSQL does depends on its statistics")
	}
	for index, condition := range map[string]string{
		"requests_common_name (common_name=?":    "common_name = 'a' AND common_name <> '' AND state = 'issued' AND ca = 'C' AND id >= 3 AND id <= 9",
		"requests_upn (upn=?":                    "upn = 'a' AND upn <> '' AND state = 'issued' AND ca = 'C' AND id >= 3 AND state = 'issued' AND revoked = 0",
		"requests_subject_key (subject_key_id=?": "subject_key_id = 'a' AND subject_key_id <> '' AND state = 'issued' AND ca = 'C' AND id >= 3",
		"requests_hash (certificate_hash=?":      "certificate_hash = 'a' AND certificate_hash <> '' AND state = 'issued' AND ca = 'C' AND id >= 3",
		"requests_hash  (certificate_hash=?":     "state = 'issued' AND certificate_hash = '' AND certificate IS NOT NULL",
	} {
		rows, err := db.SQL.Query("EXPLAIN QUERY PLAN SELECT id FROM requests WHERE " + condition + " ORDER BY id LIMIT 100 OFFSET 0")
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		rows.Close()
		if text := strings.Join(plan, "; "); !strings.Contains(text, strings.ReplaceAll(index, "  ", " ")) || strings.Contains(text, "TEMP B-TREE") {
			t.Errorf("%s: %s", condition, text)
		}
	}
}
