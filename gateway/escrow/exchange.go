package escrow

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/youmark/pkcs8"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	exchangeBits = 2048
	exchangeSkew = 10 * time.Minute
	// rotateBefore the end of the certificate a new one is made, so that a client never gets one that is about to expire.
	rotateBefore = 24 * time.Hour
)

// exchangeKey is a key pair that clients encrypt their private keys to.
type exchangeKey struct {
	id          int64
	ca          string
	cert        *x509.Certificate
	key         crypto.Decrypter
	usableUntil time.Time
	imported    bool
}

func (e *Escrow) loadKeys(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.loadKeysLocked(ctx)
}

// lastKey is the number of the newest key that this process knows.
func (e *Escrow) lastKey() (last int64) {
	for _, k := range e.keys {
		last = max(last, k.id)
	}
	return last
}

// loadKeysLocked adds the keys that this process does not know. Their numbers may be lower than those of keys that it does: another process,
// or an import, may have been given one before a key that was made here.
func (e *Escrow) loadKeysLocked(ctx context.Context) error {
	now := e.o.Now()
	e.keys = slices.DeleteFunc(e.keys, func(k *exchangeKey) bool { return now.After(k.usableUntil) })
	rows, err := e.o.DB.SQL.QueryContext(ctx, `SELECT id, ca, certificate, private_key, usable_until, imported FROM exchange_keys
		WHERE usable_until > ? AND destroyed = 0 ORDER BY id`, now.UnixMilli())
	if err != nil {
		return fmt.Errorf("exchange keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		k := &exchangeKey{}
		var der, encrypted []byte
		var until int64
		if err := rows.Scan(&k.id, &k.ca, &der, &encrypted, &until, &k.imported); err != nil {
			return fmt.Errorf("exchange keys: %w", err)
		}
		if slices.ContainsFunc(e.keys, func(known *exchangeKey) bool { return known.id == k.id }) {
			continue
		}
		k.usableUntil = time.UnixMilli(until)
		if k.cert, err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("exchange key %d: %w", k.id, err)
		}
		if k.key, err = e.openStored(encrypted, k.cert.PublicKey); err != nil {
			return fmt.Errorf("exchange key %d: %w", k.id, err)
		}
		e.keys = append(e.keys, k)
	}
	slices.SortFunc(e.keys, func(a, b *exchangeKey) int { return cmp.Compare(a.id, b.id) })
	return rows.Err()
}

// Exchange returns the CA's current exchange certificate; it makes a new one, durably, where there is none or the
// last one is about to expire.
func (e *Escrow) Exchange(ctx context.Context, ca string, identity upstream.Identity) (*x509.Certificate, error) {
	if cert := e.current(ca, identity); cert != nil {
		return cert, nil
	}
	if err := e.loadKeys(ctx); err != nil { // another process may have made one
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if cert := e.currentLocked(ca, identity); cert != nil {
			return cert, nil
		}
		k, err := e.createKey(ctx, ca, identity)
		switch {
		case err == nil:
			e.keys = append(e.keys, k)
			return k.cert, nil
		case !errors.Is(err, errNewerKey):
			return nil, err
		}
		if err := e.loadKeysLocked(ctx); err != nil {
			return nil, err
		}
	}
}

// errNewerKey is that another gateway has made an exchange key in the meantime.
var errNewerKey = errors.New("another gateway was faster")

func (e *Escrow) current(ca string, identity upstream.Identity) *x509.Certificate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.currentLocked(ca, identity)
}

func (e *Escrow) currentLocked(ca string, identity upstream.Identity) *x509.Certificate {
	limit := e.o.Now().Add(min(rotateBefore, e.o.ExchangeValidity/2))
	for _, k := range slices.Backward(e.keys) {
		if k.ca == ca && !k.imported && k.cert.NotAfter.After(limit) && k.cert.CheckSignatureFrom(identity.Certificate()) == nil {
			return k.cert
		}
	}
	return nil
}

func (e *Escrow) createKey(ctx context.Context, ca string, identity upstream.Identity) (*exchangeKey, error) {
	private, stored, err := e.generate()
	if err != nil {
		return nil, fmt.Errorf("make exchange key: %w", err)
	}
	k, err := e.certify(ca, identity, private)
	if err == nil {
		if id, ok, _ := tokenID(stored); ok { // it is found anew at each use, so that it outlives the session
			k.key = &tokenKey{escrow: e, id: id, public: private.Public()}
		}
		err = e.storeKey(ctx, k, stored, "gateway")
	}
	if err != nil {
		return nil, errors.Join(err, e.discard(stored))
	}
	return k, nil
}

// certify lets the CA sign the certificate of a new key.
func (e *Escrow) certify(ca string, identity upstream.Identity, private pkcs11.Key) (*exchangeKey, error) {
	var nonce [16]byte
	rand.Read(nonce[:])
	profile, err := exchangeProfile(identity.Certificate(), e.o.Now(), e.o.ExchangeValidity)
	if err != nil {
		return nil, err
	}
	csr, err := upstream.NewCSR(profile, private) // a foreign CA wants proof of possession
	if err != nil {
		return nil, fmt.Errorf("request exchange certificate: %w", err)
	}
	cert, err := identity.IssueExchange(upstream.Order{ID: "exchange-" + hex.EncodeToString(nonce[:]), CSR: csr, PublicKey: private.Public(), Profile: profile})
	if err != nil {
		return nil, fmt.Errorf("issue exchange certificate: %w", err)
	}
	return &exchangeKey{ca: ca, cert: cert, key: private, usableUntil: cert.NotAfter.Add(e.o.Grace)}, nil
}

// ImportExchange installs an exchange key of another CA server that this gateway takes over from, so that requests
// which clients have encrypted to it still open until the given time.
func (e *Escrow) ImportExchange(ctx context.Context, ca string, cert *x509.Certificate, key *rsa.PrivateKey, until time.Time, actor string) error {
	if !key.PublicKey.Equal(cert.PublicKey) {
		return errors.New("the exchange key is not that of the certificate")
	}
	stored, err := pkcs8.MarshalPrivateKey(key, e.o.Secret, nil)
	if err != nil {
		return fmt.Errorf("encrypt exchange key: %w", err)
	}
	k := &exchangeKey{ca: ca, cert: cert, key: key, usableUntil: until, imported: true}
	if err := e.storeKey(ctx, k, stored, actor); err != nil {
		return err
	}
	return e.loadKeys(ctx)
}

// storeKey writes a key down; stored is what openStored reads.
func (e *Escrow) storeKey(ctx context.Context, k *exchangeKey, stored []byte, actor string) error {
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		if !k.imported {
			var newer int
			if err := tx.QueryRow("SELECT count(*) FROM exchange_keys WHERE ca = ? AND imported = 0 AND id > ?", k.ca, e.lastKey()).Scan(&newer); err != nil {
				return fmt.Errorf("store exchange key: %w", err)
			}
			if newer > 0 {
				return errNewerKey
			}
		}
		if err := tx.QueryRow(`INSERT INTO exchange_keys (ca, created, certificate, private_key, not_after, usable_until, imported) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id`,
			k.ca, now.UnixMilli(), k.cert.Raw, stored, k.cert.NotAfter.UnixMilli(), k.usableUntil.UnixMilli(), k.imported).Scan(&k.id); err != nil {
			return fmt.Errorf("store exchange key: %w", err)
		}
		event := audit.ExchangeCreated
		if k.imported {
			event = audit.ExchangeImported
		}
		return audit.Append(tx, now, actor, event, map[string]any{"ca": k.ca, "serial": k.cert.SerialNumber.Text(16), "issuer": dn.Show(k.cert.RawIssuer), "usable_until": k.usableUntil.UTC()})
	})
}

// decrypt opens an EnvelopedData with whichever exchange key of the CA it is for. The caller wipes the result.
func (e *Escrow) decrypt(ca string, enveloped *wcce.Enveloped) ([]byte, error) {
	e.mu.Lock()
	keys := slices.Clone(e.keys)
	e.mu.Unlock()
	now := e.o.Now()
	for i := range enveloped.Recipients {
		r := &enveloped.Recipients[i]
		for _, k := range keys {
			if k.ca == ca && r.Names(k.cert) && now.Before(k.usableUntil) {
				return enveloped.Open(r, k.key)
			}
		}
	}
	return nil, errors.New("no recipient is an exchange certificate of this CA")
}

// exchangeProfile is the shape of [MS-WCCE] 3.2.1.4.3.2.15.1: the CA's subject with "-Xchg" added to its common name.
func exchangeProfile(ca *x509.Certificate, now time.Time, validity time.Duration) (templates.CertificateProfile, error) {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(ca.RawSubject, &rdns); err != nil || len(rest) > 0 {
		return templates.CertificateProfile{}, fmt.Errorf("the CA certificate's subject: %w", errors.Join(err, errors.New("malformed")))
	}
	found := false
	for _, rdn := range rdns {
		for i := range rdn {
			if cn, ok := rdn[i].Value.(string); ok && rdn[i].Type.String() == "2.5.4.3" && !found {
				rdn[i].Value, found = cn+"-Xchg", true
			}
		}
	}
	if !found {
		rdns = append(rdns, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "CA-Xchg"}})
	}
	subject, err := asn1.Marshal(rdns)
	if err != nil {
		return templates.CertificateProfile{}, fmt.Errorf("exchange certificate: %w", err)
	}
	var policies cryptobyte.Builder
	policies.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(exchangeUsage) })
	})
	var usages cryptobyte.Builder
	usages.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(exchangeUsage) })
	start := now.UTC().Truncate(time.Second).Add(-exchangeSkew)
	end := start.Add(validity + exchangeSkew)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter.UTC()
	}
	return templates.CertificateProfile{
		Template: "CAExchange", Subject: subject, NotBefore: start, NotAfter: end,
		Extensions: []templates.Extension{
			{OID: wcce.OIDTemplateName, Value: wcce.BMPString("CAExchange")},
			{OID: wcce.OIDEKU, Value: usages.BytesOrPanic()},
			{OID: wcce.OIDKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x05, 0x20}}, // keyEncipherment
			{OID: wcce.OIDAppPolicies, Value: policies.BytesOrPanic()},
		},
	}, nil
}

var exchangeUsage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 5}
