package kill

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/upstreams/ejbca/ejbcaserver"
)

// check reads what is on disk, as an auditor would, after the gateway was killed for the last time. received are the
// certificates that clients have, by request number. No test sends the same octets again after more than 15 s, so each
// fingerprint is issued once. It returns how many orders the CA was sent again, as far as it tells.
func (s *setup) check(t *testing.T, received map[string][]byte) (again int) {
	t.Helper()
	cfg, err := config.Load(s.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	db, err := store.Open(ctx, filepath.Join(cfg.Data, "enrollgate.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	l := ledger.New(db, time.Now)
	rows, err := l.List(ctx, "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	wantPublications(t, l, rows)
	issued := map[string]*x509.Certificate{} // by decimal serial number
	fingerprints := map[string]int64{}
	for _, r := range rows {
		if r.State != ledger.Issued {
			t.Errorf("request %d is %s after the restart: %s %s %s", r.ID, r.State, r.Message, r.Trouble, r.Doubt)
			continue
		}
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := wcce.ParseCSR(r.CSR)
		if err != nil || !bytes.Equal(csr.RawSPKI, cert.RawSubjectPublicKeyInfo) {
			t.Errorf("request %d: the certificate has another key: %v", r.ID, err)
		}
		if other := fingerprints[string(r.Fingerprint)]; other != 0 {
			t.Errorf("requests %d and %d are the same octets, issued twice", r.ID, other)
		}
		fingerprints[string(r.Fingerprint)] = r.ID
		if serial := cert.SerialNumber.String(); issued[serial] != nil {
			t.Errorf("request %d and another one have the serial number %s", r.ID, serial)
		} else {
			issued[serial] = cert
		}
		if got := received[strconv.FormatInt(r.ID, 10)]; got != nil && !bytes.Equal(got, r.Certificate) {
			t.Errorf("request %d: the client has another certificate than the ledger", r.ID)
		}
		if r.Archived != (r.Template == "LabUserSMIME") {
			t.Errorf("request %d for %s: archived is %v", r.ID, r.Template, r.Archived)
		}
		if err := s.archived(db, r, cert); r.Archived && err != nil {
			t.Errorf("request %d: a certificate without its key in escrow: %v", r.ID, err)
		}
	}
	for id, der := range received {
		if cert, err := x509.ParseCertificate(der); err != nil || issued[cert.SerialNumber.String()] == nil {
			t.Errorf("the client has a certificate for request %s, which the ledger does not know: %v", id, err)
		}
	}
	var orphans int
	if err := db.SQL.QueryRow("SELECT count(*) FROM escrow_records e LEFT JOIN requests r ON r.id = e.request_id WHERE r.id IS NULL").Scan(&orphans); err != nil || orphans != 0 {
		t.Errorf("%d archived keys without a request, %v", orphans, err)
	}
	lines, err := audit.Verify(ctx, db.SQL)
	if err != nil {
		t.Error(err)
	}
	t.Logf("ledger: %d requests; audit log: %d lines", len(rows), lines)
	// The embedded CA has no list of its own: it signs into the ledger, and what it signed in a process that was killed
	// before that reached nobody. That the requests have different serial numbers was seen above.
	if s.step != nil {
		list := s.step.Stop(t)
		compareWithList(t, issued, list)
		again = repeated(list)
	}
	if s.ejbca != nil {
		compareWithEJBCA(t, issued, s.ejbca)
	}
	return again
}

// compareWithEJBCA compares the ledger with every certificate that EJBCA has issued.
func compareWithEJBCA(t *testing.T, issued map[string]*x509.Certificate, list *ejbcaserver.Server) {
	t.Helper()
	list.Mu.Lock()
	defer list.Mu.Unlock()
	have := map[string]bool{}
	for _, cert := range list.Certificates {
		serial := cert.SerialNumber.String()
		have[serial] = true
		if own := issued[serial]; own == nil || !own.Equal(cert) {
			t.Errorf("EJBCA has issued %s (%s), which the ledger does not know", serial, cert.Subject)
		}
	}
	for serial := range issued {
		if !have[serial] {
			t.Errorf("the ledger has a certificate %s that EJBCA does not know", serial)
		}
	}
	t.Logf("EJBCA: %d certificates", len(list.Certificates))
}

// wantPublications requires that each certificate came with what brings it to the directory, where its template asks for it.
func wantPublications(t *testing.T, l *ledger.Ledger, rows []*ledger.Row) {
	t.Helper()
	recorded := map[int64]bool{}
	for sid := range accountsOf(rows) {
		list, err := l.Publications(context.Background(), ledger.Target{Place: ledger.PlaceAccount, Name: string(sid)})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			recorded[p.Request] = p.State != ledger.None
		}
	}
	for _, r := range rows {
		if r.State == ledger.Issued && r.Profile.PublishToDS != recorded[r.ID] {
			t.Errorf("request %d: to be published: %v; recorded: %v", r.ID, r.Profile.PublishToDS, recorded[r.ID])
		}
	}
}

func accountsOf(rows []*ledger.Row) map[security.SID]bool {
	out := map[security.SID]bool{}
	for _, r := range rows {
		out[r.SubjectSID] = true
	}
	return out
}

// archived opens a request's record with the agent's key: there is one, and it has the key of the certificate.
func (s *setup) archived(db *store.DB, r *ledger.Row, cert *x509.Certificate) error {
	keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	var n int
	var sealed []byte
	if err := db.SQL.QueryRow("SELECT count(*), max(sealed) FROM escrow_records WHERE request_id = ? AND key_id = ?", r.ID, keyID[:]).Scan(&n, &sealed); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("%d records", n), err)
	}
	enveloped, err := wcce.ParseEnveloped(sealed)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(enveloped.Recipients, func(r wcce.Recipient) bool { return r.Names(s.Agent) })
	if i < 0 {
		return errors.New("it is not sealed to the agent")
	}
	content, err := enveloped.Open(&enveloped.Recipients[i], s.AgentKey)
	if err != nil {
		return err
	}
	pkcs8, err := wcce.PrivateKeyDER(content)
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return err
	}
	if k, ok := key.(*rsa.PrivateKey); !ok || !k.PublicKey.Equal(cert.PublicKey) {
		return errors.New("it has another key")
	}
	return nil
}

// compareWithList compares the ledger with step-ca's database. The driver repeats an order whose answer was lost under the
// same serial number, with the same contents; step-ca, whose key is an ECDSA key, signs it anew. That is one certificate,
// and step-ca too stores it as one. "Issued twice" is a valid certificate that the ledger does not have: under another
// serial number, or with other contents.
func compareWithList(t *testing.T, issued map[string]*x509.Certificate, list *server.Database) {
	t.Helper()
	revoked := 0
	for serial, cert := range list.Certificates {
		own := issued[serial]
		switch {
		case own != nil && !bytes.Equal(own.RawTBSCertificate, cert.RawTBSCertificate):
			t.Errorf("step-ca has other contents under the serial number %s than the ledger", serial)
		case own != nil && list.Revoked[serial]:
			t.Errorf("the ledger has %s as issued, and step-ca has revoked it", serial)
		case own != nil:
		case list.Revoked[serial]:
			revoked++
		default:
			t.Errorf("step-ca has a valid certificate %s (%s), which the ledger does not know", serial, cert.Subject)
		}
	}
	for serial := range issued {
		if list.Certificates[serial] == nil {
			t.Errorf("the ledger has a certificate %s that step-ca does not know", serial)
		}
	}
	t.Logf("step-ca: %d certificates, %d of them revoked and not in the ledger; %d orders came again", len(list.Certificates), revoked, repeated(list))
}

// repeated counts the orders that came again: the first token of an order has a fixed name, the later ones have one with
// a point and a random part.
func repeated(list *server.Database) int {
	orders := map[string]bool{}
	for _, id := range list.Tokens {
		if first, _, again := strings.Cut(id, "."); again {
			orders[first] = true
		}
	}
	return len(orders)
}
