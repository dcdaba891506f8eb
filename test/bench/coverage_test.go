package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/escrow/verify"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// archivedKeys is how many there are in BenchmarkCoverage; BENCH_KEYS is another number.
const archivedKeys = 20_000

// BenchmarkCoverage looks at many archived keys: whether each can be had, and whether each is what was archived. Beside the speed it
// prints the memory that the process has had at most.
func BenchmarkCoverage(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv("BENCH_KEYS"))
	if err != nil {
		n = archivedKeys
	}
	db, err := store.Open(background, filepath.Join(b.TempDir(), "bench.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	e, err := escrow.New(background, escrow.Options{DB: db, Secret: []byte("secret"), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	_, agent := testpki.Agent(b, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	if err := e.AddAgent(background, agent, "bench"); err != nil {
		b.Fatal(err)
	}
	fill(b, db, e, n)
	l := ledger.New(db, time.Now)
	report := func(name string, do func() error) {
		before := cpu()
		begin := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		took := time.Since(begin)
		fmt.Printf("%-10s %d in %.1f s: %.0f/s, %.0f us CPU each, at most %d MiB of memory\n", name, n, took.Seconds(), float64(n)/took.Seconds(), float64((cpu()-before).Microseconds())/float64(n), peak(b))
		b.ReportMetric(float64(n)/took.Seconds(), name+"/s")
	}
	fmt.Printf("\n%d keys; at most %d MiB of memory before\n", n, peak(b))
	report("coverage", func() error {
		sum, err := coverage.Run(background, coverage.Options{DB: db, Ledger: l, Escrow: e, Now: time.Now()}, func(coverage.Certificate) error { return nil })
		if err == nil && sum.Total.Held != int64(n) {
			err = fmt.Errorf("%+v", sum)
		}
		return err
	})
	_, key, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		b.Fatal(err)
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		b.Fatal(err)
	}
	report("verify", func() error {
		r, err := verify.Run(background, verify.Options{DB: db, Escrow: e, Log: v, Now: time.Now, Actor: "bench"}, func(f verify.Finding) error { return fmt.Errorf("%+v", f) })
		if err == nil && r.Records != int64(n)+1 {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
}

// fill issues certificates for keys of their own, and imports one key; what is sealed is the same for all.
func fill(b *testing.B, db *store.DB, e *escrow.Escrow, n int) {
	key, cert := testpki.Agent(b, "alice", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	id, err := e.Import(background, key, cert, escrow.Owner{Name: "alice@LAB.TEST"}, "bench")
	if err != nil {
		b.Fatal(err)
	}
	sealed, err := e.Get(background, id)
	if err != nil {
		b.Fatal(err)
	}
	record := escrow.Record{Source: "enrollment", Owner: "alice@LAB.TEST", Algorithm: "P-256", Bits: 256, Policy: sealed.Policy, Required: 1, Format: sealed.Format, Recipients: sealed.Recipients, Sealed: sealed.Sealed()}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for done := 0; done < n; done += 1000 {
		err := db.Write(background, func(tx *sql.Tx) error {
			for i := done; i < min(done+1000, n); i++ {
				if err := fillOne(tx, record, ca, int64(i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func fillOne(tx *sql.Tx, record escrow.Record, ca *ecdsa.PrivateKey, serial int64) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial + 1), Subject: pkix.Name{CommonName: "Alice"}, NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageKeyAgreement, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}}, &x509.Certificate{Subject: pkix.Name{CommonName: "Bench CA"}}, key.Public(), ca)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	record.KeyID = keyID[:]
	var request int64
	err = tx.QueryRow(`INSERT INTO requests (state, created, updated, caller, caller_sid, subject_sid, template, ca, transport, archived, fingerprint, serial, certificate, not_after, profile, checks)
		VALUES ('issued', 0, 0, 'alice@LAB.TEST', 'S', 'S', 'Mail', 'Bench CA', '', 1, ?, ?, ?, ?, '{}', '[]') RETURNING id`, keyID[:], ledger.SerialText(cert), der, cert.NotAfter.UnixMilli()).Scan(&request)
	if err != nil {
		return err
	}
	_, err = record.Insert(tx, time.Now(), request, "gateway", record.Owner, "CN=Alice")
	return err
}

// peak is the most resident memory that the process ever had, in MiB.
func peak(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Maxrss >> 10
}
