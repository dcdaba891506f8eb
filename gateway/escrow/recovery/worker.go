package recovery

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"golang.org/x/crypto/cryptobyte"
)

// Worker opens the records of a batch, one after the other: each key is in memory for the time that it takes to seal it anew or
// to sign with it.
type Worker struct {
	s       BatchStatement
	batch   int64
	key     *CaseKey
	mine    []*x509.Certificate
	agent   crypto.Decrypter
	targets []quorum.Recipient
}

// NewWorker begins or resumes the work on a batch. The statement is that of the file: what the gateway says now counts for nothing
// but the certificates, which are compared with the statement's fingerprints.
func NewWorker(info *BatchInfo, f *BatchFile, agent crypto.Decrypter, now time.Time) (*Worker, error) {
	if err := f.Statement.Check(); err != nil {
		return nil, fmt.Errorf("batch %d: %w", f.Batch, err)
	}
	if info.Batch != f.Batch || !same(info.Statement.Hash(), f.Statement.Hash()) {
		return nil, fmt.Errorf("the batch key is of another batch than batch %d of the gateway", info.Batch)
	}
	if now.After(info.Expires) {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, ErrExpired)
	}
	w := &Worker{s: f.Statement, batch: f.Batch, agent: agent}
	private, err := quorum.KEM().NewPrivateKey(f.Private)
	if err != nil {
		return nil, fmt.Errorf("batch key: %w", err)
	}
	w.key = &CaseKey{private}
	if w.mine, err = certificatesOf(info.Agents, agent.Public()); err != nil {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	for _, want := range w.s.Order.Targets {
		i := slices.IndexFunc(info.Targets, func(der []byte) bool {
			cert, err := x509.ParseCertificate(der)
			return err == nil && fingerprintOf(cert) == want
		})
		if i < 0 {
			return nil, fmt.Errorf("batch %d: the gateway has not sent the certificate %s that records are to be sealed to", info.Batch, want)
		}
		cert, _ := x509.ParseCertificate(info.Targets[i])
		to, err := recipientOf(cert, info.Hybrid)
		if err != nil {
			return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
		}
		if w.s.Order.Hybrid && to.Hybrid == nil {
			return nil, fmt.Errorf("batch %d: the gateway has not sent the hybrid key of %s, which the policy requires", info.Batch, cert.Subject)
		}
		w.targets = append(w.targets, to)
	}
	return w, nil
}

// Opened are the parts of one page, in the clear. Wipe it.
type Opened struct {
	page  *Page
	parts map[int64][]held
	Bad   []BadShare // parts that cannot be used
}

// held is an agent's part of a record.
type held struct {
	agent, holder string
	payload       []byte
}

// Wipe overwrites the parts.
func (o *Opened) Wipe() {
	for _, list := range o.parts {
		for _, h := range list {
			wcce.Wipe(h.payload)
		}
	}
}

// Open opens the parts that agents have sealed for a page.
func (w *Worker) Open(p *Page) (*Opened, error) {
	if err := p.check(&w.s.Order); err != nil {
		return nil, err
	}
	o := &Opened{page: p, parts: map[int64][]held{}}
	for i := range p.Parts {
		parts := &p.Parts[i]
		if err := w.openParts(parts, p.Number, o); err != nil {
			o.Bad = append(o.Bad, BadShare{parts.Agent, err})
		}
	}
	return o, nil
}

func (w *Worker) openParts(p *Parts, page int, o *Opened) error {
	if !same([]byte(p.Statement), []byte(hex.EncodeToString(w.s.Hash()))) || p.Page != page {
		return errors.New("the consent is to another batch or page")
	}
	plain, err := w.key.open(p.info(), p.Sealed)
	if err != nil {
		return errors.New("it is not sealed to the batch key")
	}
	defer wcce.Wipe(plain)
	in := cryptobyte.String(plain)
	for _, part := range p.Parts {
		var payload cryptobyte.String
		if !in.ReadUint16LengthPrefixed(&payload) {
			return errors.New("it holds fewer parts than it says")
		}
		o.parts[part.Record] = append(o.parts[part.Record], held{p.Agent, part.Holder, slices.Clone(payload)})
	}
	return nil
}

// ErrWaits is a record for which too few agents have consented yet.
var ErrWaits = errors.New("too few agents have consented yet")

// Do opens one record and does to it what was ordered. A record that cannot be opened for another reason than ErrWaits has a
// Result that says so. bad are the agents whose parts of the record could not be used.
func (w *Worker) Do(o *Opened, i *Item) (result *Result, bad []BadShare, err error) {
	memory.Secret(func() { result, bad, err = w.do(o, i) })
	return result, bad, err
}

func (w *Worker) do(o *Opened, i *Item) (result *Result, bad []BadShare, err error) {
	pkcs8, signer, bad, err := w.key1(o, i)
	if errors.Is(err, ErrWaits) {
		return nil, bad, err
	}
	if err != nil {
		return &Result{Record: i.Record, Failed: oneLine(err)}, bad, nil
	}
	defer wcce.Wipe(pkcs8)
	result = &Result{Record: i.Record}
	if w.s.Order.Purpose == Rewrap {
		if err := w.reseal(i, pkcs8, result); err != nil {
			return nil, bad, err
		}
	}
	return result, bad, result.Sign(&w.s, i, signer)
}

// key1 puts the key of one record together and requires that it is its certificate's. The caller wipes it.
func (w *Worker) key1(o *Opened, i *Item) (pkcs8 []byte, signer crypto.Signer, bad []BadShare, err error) {
	r, cert, err := i.read(&w.s.Order)
	if err != nil {
		return nil, nil, nil, err
	}
	defer r.wipe()
	mine := own(r, w.mine)
	if mine == nil {
		return nil, nil, nil, fmt.Errorf("archived key %d is not sealed to the worker", i.Record)
	}
	consents := map[string]bool{fingerprintOf(w.mine[0]): true}
	for _, h := range o.parts[i.Record] {
		if len(h.payload) > 0 {
			if err := r.add(h.holder, h.payload); err != nil {
				bad = append(bad, BadShare{h.agent, err})
				continue
			}
		}
		consents[h.agent] = true
	}
	if len(consents) < w.s.Order.Required { // also of a record that the worker could open alone
		return nil, nil, bad, ErrWaits
	}
	p, err := r.open(mine, w.agent)
	if err != nil {
		return nil, nil, bad, fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	defer p.wipe()
	if err := r.add(fingerprintOf(mine), p.payload); err != nil {
		return nil, nil, bad, fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	if pkcs8, err = r.key(); err != nil {
		return nil, nil, bad, fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	if pkcs8 == nil {
		return nil, nil, bad, ErrWaits
	}
	if signer, err = matching(pkcs8, cert); err == nil && w.s.Order.Purpose == Drill {
		err = everyShare(r, pkcs8)
	}
	if err != nil {
		wcce.Wipe(pkcs8)
		return nil, nil, bad, fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	return pkcs8, signer, bad, nil
}

// everyShare requires that every share there is opens the key, also those that are more than it takes.
func everyShare(r record, pkcs8 []byte) error {
	s, ok := r.(*shared)
	if !ok {
		return nil
	}
	needed := s.record.Required
	for i := needed; i < len(s.shares); i++ {
		again, err := s.record.Combine(append(slices.Clone(s.shares[:needed-1]), s.shares[i]))
		if err != nil {
			return fmt.Errorf("share %d does not fit the others: %w", s.shares[i].Index, err)
		}
		equal := same(again, pkcs8)
		if wcce.Wipe(again); !equal {
			return fmt.Errorf("share %d opens another key than the others", s.shares[i].Index)
		}
	}
	return nil
}

func (w *Worker) reseal(i *Item, pkcs8 []byte, result *Result) error {
	id, err := hex.DecodeString(i.KeyID)
	if err != nil {
		return err
	}
	o := &w.s.Order
	record, err := escrow.Reseal(pkcs8, id, i.Owner, o.Policy, o.Required, w.targets)
	if err != nil {
		return fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	result.Format, result.Sealed = record.Format, record.Sealed
	return nil
}

// CheckSealed requires that a result's record is of the item's key, and sealed to the order's agents under its policy: as far as
// can be seen from outside. targets are the agents of the order's fingerprints.
func (r *Result) CheckSealed(o *Order, i *Item, targets []quorum.Recipient) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("archived key %d: "+format, append([]any{i.Record}, args...)...)
	}
	if o.Required < i.Required || (r.Format == escrow.FormatShared) != isShared(o.Required, targets) {
		return refuse("it took %d agents, and would be sealed so that fewer open it", i.Required)
	}
	if len(r.Sealed) > quorum.MaxRecord {
		return refuse("more than %d octets", quorum.MaxRecord)
	}
	switch r.Format {
	case escrow.FormatShared:
	case escrow.FormatCMS, escrow.FormatKeyBlob:
		enveloped, err := wcce.ParseEnveloped(r.Sealed)
		if err != nil {
			return refuse("%w", err)
		}
		for _, a := range targets {
			if !slices.ContainsFunc(enveloped.Recipients, func(to wcce.Recipient) bool { return to.Names(a.Certificate) }) {
				return refuse("it is not sealed to %s", a.Certificate.Subject)
			}
		}
		if len(enveloped.Recipients) != len(targets) {
			return refuse("it is sealed to %d agents, %d were ordered", len(enveloped.Recipients), len(targets))
		}
		return nil
	default:
		return refuse("format %d is not understood", r.Format)
	}
	sealed, err := quorum.Parse(r.Sealed)
	if err != nil {
		return refuse("%w", err)
	}
	if hex.EncodeToString(sealed.KeyID) != i.KeyID || sealed.Owner != i.Owner || sealed.Policy != o.Policy {
		return refuse("it is sealed as the key %x of %s under policy %q", sealed.KeyID, sealed.Owner, sealed.Policy)
	}
	if sealed.Required != o.Required {
		return refuse("it would take %d agents, %d were ordered", sealed.Required, o.Required)
	}
	if len(sealed.Holders) != len(o.Targets) || slices.ContainsFunc(sealed.Holders, func(h quorum.Holder) bool { return !slices.Contains(o.Targets, h.Fingerprint) }) {
		return refuse("it is sealed to other agents than were ordered")
	}
	for _, a := range targets {
		if h := sealed.Holder(fingerprintOf(a.Certificate)); h == nil || h.Protection != a.Protection() {
			return refuse("the share of %s is not sealed to the keys that the agent has", a.Certificate.Subject)
		}
	}
	return nil
}

// oneLine is an error's text as it is kept.
func oneLine(err error) string {
	text := err.Error()
	if len(text) > 500 {
		text = text[:500]
	}
	if CheckReason(text) != nil {
		return "it cannot be opened"
	}
	return text
}
