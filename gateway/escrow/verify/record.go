package verify

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// record is a row.
type record struct {
	id                       int64
	source, owner, policy    string
	algorithm, recipients    string
	bits, required, format   int
	proven                   int64
	keyID, sealed            []byte
	certificate, certRequest []byte // DER; the request only where there is no certificate
	previous                 []byte // what a rewrap has replaced, as long as it is kept
}

func records(ctx context.Context, db querier, where string, args ...any) (out []record, err error) {
	rows, err := db.QueryContext(ctx, `SELECT e.id, e.source, e.owner, e.policy, e.algorithm, e.recipients, e.bits, e.required, e.format, e.proven, e.key_id, e.sealed,
		coalesce(e.certificate, r.certificate), CASE WHEN e.certificate IS NULL AND r.certificate IS NULL THEN r.csr END,
		(SELECT p.sealed FROM escrow_previous p WHERE p.record = e.id)
		FROM escrow_records e LEFT JOIN requests r ON r.id = e.request_id WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r record
		if err := rows.Scan(&r.id, &r.source, &r.owner, &r.policy, &r.algorithm, &r.recipients, &r.bits, &r.required, &r.format, &r.proven, &r.keyID, &r.sealed,
			&r.certificate, &r.certRequest, &r.previous); err != nil {
			return nil, fmt.Errorf("escrow: %w", err)
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// judge compares a record with everything that is known of it.
func (r *run) judge(e *record) error {
	r.report.Records++
	p := r.log.of(e.id)
	var wrong []string
	switch {
	case p == nil:
		wrong = append(wrong, "the audit log has no line of it")
	case len(e.sealed) == 0 && p.flags&destroyed != 0:
		p.flags |= seen
		r.report.Destroyed++
		return nil
	default:
		p.flags |= seen
		wrong = p.compare(e)
		if p.flags&hashed == 0 {
			r.report.Unhashed++
		}
	}
	t, err := r.termsOf(e)
	wrong = append(wrong, texts(err, e.checkKey(), e.checkSealed(t.recipients, r.agents))...)
	for _, fingerprint := range t.unknown {
		wrong = append(wrong, "nobody with the fingerprint "+fingerprint+" was ever a recovery agent")
	}
	if len(wrong) > 0 {
		r.report.Bad++
		return r.yield(Finding{e.id, e.owner, Bad, strings.Join(wrong, "; "), restore})
	}
	if t.opening.Why == "" {
		return nil
	}
	r.report.Attention++
	return r.yield(Finding{e.id, e.owner, Attention, "nobody can open it: " + t.opening.Why,
		"designate former agents again who still have their keys (enrollgate escrow agents add), then seal it to others (enrollgate escrow rewrap open)"})
}

func texts(list ...error) (out []string) {
	for _, err := range list {
		if err != nil {
			out = append(out, err.Error())
		}
	}
	return out
}

// compare says what differs from the audit log.
func (p *past) compare(e *record) (wrong []string) {
	if p.flags&archived == 0 {
		wrong = append(wrong, "the audit log does not say that it was archived")
	} else if p.identity != identity(e.owner, e.policy, e.keyID) {
		wrong = append(wrong, "owner, policy or key is not that of the audit log")
	}
	if p.flags&destroyed != 0 {
		wrong = append(wrong, "its key is destroyed by the audit log, and here again")
	}
	if p.flags&hashed != 0 && p.sealed != digestFor(e.sealed) {
		wrong = append(wrong, "the sealed key is not the one of the audit log")
	}
	if e.previous != nil && p.replaced != digestFor(e.previous) {
		wrong = append(wrong, "what the last rewrap has replaced, and is kept for enrollgate escrow rewrap restore, is not the one of the audit log")
	}
	if p.flags&restored == 0 && p.proven != e.proven {
		wrong = append(wrong, fmt.Sprintf("it says that it was proven at %s, the audit log %s", when(e.proven), when(p.proven)))
	}
	return wrong
}

func when(ms int64) string {
	if ms == 0 {
		return "never"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

// terms are who opens a record.
type terms struct {
	recipients []string // fingerprints, sorted
	unknown    []string // of those, who was never an agent
	opening    escrow.Opening
}

func (r *run) termsOf(e *record) (t terms, err error) {
	key := fmt.Sprintf("%d %s %s", e.required, e.policy, e.recipients)
	if t, ok := r.terms[key]; ok {
		return t, nil
	}
	if err := json.Unmarshal([]byte(e.recipients), &t.recipients); err != nil || len(t.recipients) == 0 {
		return t, errors.New("it names no recipients")
	}
	slices.Sort(t.recipients)
	for _, fingerprint := range t.recipients {
		if r.agents.Certificate(fingerprint) == nil {
			t.unknown = append(t.unknown, fingerprint)
		}
	}
	t.opening = r.Escrow.Opening(r.agents, e.policy, e.required, t.recipients)
	r.terms[key] = t
	return t, nil
}

// checkKey compares the key's identifier, algorithm and size with the certificate, or with the request while there is none.
func (e *record) checkKey() error {
	var spki []byte
	var public any
	if e.certificate != nil {
		cert, err := x509.ParseCertificate(e.certificate)
		if err != nil {
			return fmt.Errorf("its certificate cannot be read: %w", err)
		}
		spki, public = cert.RawSubjectPublicKeyInfo, cert.PublicKey
	} else if e.certRequest != nil {
		csr, err := wcce.ParseCSR(e.certRequest)
		if err != nil {
			return fmt.Errorf("its request cannot be read: %w", err)
		}
		spki, public = csr.RawSPKI, csr.PublicKey
	} else {
		return errors.New("it has neither a certificate nor a request")
	}
	if sum := sha256.Sum256(spki); string(sum[:]) != string(e.keyID) {
		return errors.New("the key is not that of its certificate")
	}
	if algorithm, bits := escrow.DescribeKey(public); algorithm != e.algorithm || bits != e.bits {
		return fmt.Errorf("the certificate's key is %s %d, not %s %d", algorithm, bits, e.algorithm, e.bits)
	}
	return nil
}

// checkSealed parses what is sealed, and compares what can be read of it without opening it. recipients are sorted.
func (e *record) checkSealed(recipients []string, agents *escrow.Openers) error {
	switch e.format {
	case escrow.FormatShared:
		return e.checkShared(recipients)
	case escrow.FormatCMS, escrow.FormatKeyBlob:
		return e.checkCMS(recipients, agents)
	}
	return fmt.Errorf("its format %d does not exist", e.format)
}

func (e *record) checkShared(recipients []string) error {
	q, err := quorum.Parse(e.sealed)
	if err != nil {
		return err
	}
	var holders []string
	for _, h := range q.Holders {
		holders = append(holders, h.Fingerprint)
	}
	slices.Sort(holders)
	switch {
	case string(q.KeyID) != string(e.keyID):
		return errors.New("another key is sealed in it")
	case q.Owner != e.owner:
		return fmt.Errorf("the key of %q is sealed in it", q.Owner)
	case q.Policy != e.policy:
		return fmt.Errorf("it is sealed under the policy %q, not %q", q.Policy, e.policy)
	case q.Required != e.required:
		return fmt.Errorf("it is sealed so that it takes %d agents, not %d", q.Required, e.required)
	case !slices.Equal(holders, recipients):
		return errors.New("it is sealed to other agents than it says")
	}
	return nil
}

// checkCMS wants exactly the recipients that the row names. What another CA server has archived may be open to agents of that
// one, too.
func (e *record) checkCMS(recipients []string, agents *escrow.Openers) error {
	sealed, err := wcce.ParseEnveloped(e.sealed)
	if err != nil {
		return err
	}
	if e.required != 1 {
		return fmt.Errorf("any one agent opens it, and it says that it takes %d", e.required)
	}
	for _, fingerprint := range recipients {
		cert := agents.Certificate(fingerprint)
		if cert != nil && !slices.ContainsFunc(sealed.Recipients, func(r wcce.Recipient) bool { return r.Names(cert) }) {
			return errors.New("it is not sealed to the agent with the fingerprint " + fingerprint)
		}
	}
	if len(sealed.Recipients) != len(recipients) && e.source != "import" {
		return fmt.Errorf("it is sealed to %d agents, and names %d", len(sealed.Recipients), len(recipients))
	}
	return nil
}
