package escrow

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Signer signs recovery blobs: a CA.
type Signer struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // above it
	Key         crypto.Signer
	Hash        crypto.Hash
}

// ExportBlob returns an archived key, still closed, as certutil -getkey does, so that an agent opens it with certutil
// -recoverkey. The line in the audit log is durable before that.
func (e *Escrow) ExportBlob(ctx context.Context, entry *Entry, ca Signer, actor, reason string) ([]byte, error) {
	if strings.TrimSpace(reason) == "" {
		return nil, errors.New("an export needs a written reason")
	}
	entry, err := e.Get(ctx, entry.ID) // as it is now, with what is sealed
	if err == nil {
		err = entry.Gone()
	}
	if err != nil {
		return nil, err
	}
	switch entry.Format {
	case FormatShared:
		return nil, fmt.Errorf("archived key %d is shared among agents (policy %q), which Windows's format cannot express: enrollgate recovery open", entry.ID, entry.Policy)
	case FormatCMS:
		return nil, fmt.Errorf("archived key %d is sealed as PKCS#8, which certutil does not read: enrollgate escrow rewrap open --again seals it anew", entry.ID)
	}
	cert, err := entry.Certificate()
	if err != nil {
		return nil, err
	}
	agents, err := e.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, err
	}
	blob := &wcce.RecoveryBlob{Enveloped: entry.sealed, Certificate: cert}
	add := func(c *x509.Certificate) {
		if !slices.ContainsFunc(blob.Certificates, c.Equal) {
			blob.Certificates = append(blob.Certificates, c)
		}
	}
	for _, c := range slices.Backward(ca.Chain) {
		add(c)
	}
	add(ca.Certificate)
	for _, a := range agents {
		add(a.Certificate)
	}
	add(cert)
	der, err := blob.Sign(ca.Certificate, ca.Key, ca.Hash)
	if err != nil {
		return nil, err
	}
	return der, e.log(ctx, actor, audit.KeyExported, map[string]any{"record": entry.ID, "owner": entry.Owner, "reason": reason, "recipients": entry.Recipients})
}

// BlobImport says how a recovery blob of another CA server is taken over.
type BlobImport struct {
	CA        *x509.Certificate // that must have signed the blob
	Owner     Owner
	Designate bool // the agents that the blob is sealed to, where they are not designated yet; expired ones too
}

// ImportBlob archives a key that AD CS has archived, from the recovery blob that certutil -getkey wrote. It stays closed, and
// the agents that open it are those that opened it there.
func (e *Escrow) ImportBlob(ctx context.Context, der []byte, o BlobImport, actor string) (int64, error) {
	blob, signer, err := wcce.ParseRecoveryBlob(der)
	if err != nil {
		return 0, err
	}
	if !signer.Equal(o.CA) {
		return 0, fmt.Errorf("the recovery blob is signed by %s, serial number %x, not by the CA that you name", dn.Show(signer.RawSubject), signer.SerialNumber)
	}
	policy, err := e.PolicyFor(o.Owner)
	if err != nil {
		return 0, err
	}
	agents, err := e.blobAgents(ctx, blob, o.Designate, actor)
	if err != nil {
		return 0, err
	}
	cert := blob.Certificate
	keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	algorithm, bits := DescribeKey(cert.PublicKey)
	record := &Record{Source: "import", Owner: o.Owner.Name, Algorithm: algorithm, Bits: bits, KeyID: keyID[:], Policy: policy.Name, Required: 1,
		Format: FormatKeyBlob, Recipients: agents, Sealed: blob.Enveloped, Certificate: cert.Raw}
	return e.insertImported(ctx, record, cert, actor)
}

// blobAgents are the fingerprints of the designated agents that a blob is sealed to.
func (e *Escrow) blobAgents(ctx context.Context, blob *wcce.RecoveryBlob, designate bool, actor string) (fingerprints []string, err error) {
	enveloped, err := wcce.ParseEnveloped(blob.Enveloped)
	if err != nil {
		return nil, err
	}
	agents, err := e.Agents(ctx)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, a := range agents {
		certs = append(certs, a.Certificate)
	}
	for _, c := range blob.Certificates {
		if designate && hasKeyRecovery(c) && !slices.ContainsFunc(certs, c.Equal) && isRecipient(enveloped, c) {
			if err := e.designate(ctx, &Agent{Certificate: c}, actor); err != nil {
				return nil, err
			}
			certs = append(certs, c)
		}
	}
	for _, c := range certs {
		if isRecipient(enveloped, c) {
			fingerprints = append(fingerprints, Fingerprint(c))
		}
	}
	if len(fingerprints) > 0 {
		return fingerprints, nil
	}
	var names []string
	for _, c := range blob.Certificates {
		if hasKeyRecovery(c) {
			names = append(names, dn.Show(c.RawSubject))
		}
	}
	return nil, fmt.Errorf("none of the agents that the recovery blob is sealed to is designated here (it has the certificates of: %s); designate them with --designate", strings.Join(names, "; "))
}

func isRecipient(e *wcce.Enveloped, cert *x509.Certificate) bool {
	return slices.ContainsFunc(e.Recipients, func(r wcce.Recipient) bool { return r.Names(cert) })
}

// insertImported stores a record of an imported key, unless there is one of it.
func (e *Escrow) insertImported(ctx context.Context, record *Record, cert *x509.Certificate, actor string) (id int64, err error) {
	err = e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		var existing int64
		switch err := tx.QueryRow("SELECT id FROM escrow_records WHERE key_id = ? AND destroyed = 0", record.KeyID).Scan(&existing); {
		case err == nil:
			return fmt.Errorf("this key (%s) is archived already, as record %d", hex.EncodeToString(record.KeyID), existing)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		var err error
		id, err = record.Insert(tx, e.o.Now(), 0, actor, record.Owner, dn.Show(cert.RawSubject))
		return err
	})
	return id, err
}
