package recovery

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"golang.org/x/crypto/cryptobyte"
)

// This file is what agents do in a batch, each on the own machine. NewConsent and Consent.Page are for those whose parts are
// needed; NewBatchFile, NewWorker and Worker.Do for the one whose machine opens the keys. Parts are sealed to the batch key as
// approvals are to a case key.

// Parts are an agent's parts of the records on one page, sealed to the batch key.
type Parts struct {
	Batch     int64  `json:"batch"`
	Page      int    `json:"page"`
	Statement string `json:"statement"` // BatchStatement.Hash, hexadecimal
	Agent     string `json:"agent"`     // fingerprint of the agent's certificate
	Parts     []Part `json:"parts"`     // in the order in which they are sealed
	Sealed    []byte `json:"sealed"`    // HPKE
}

// Part says of one part whose it is. A record that any one agent opens has none: the agent's name is the consent.
type Part struct {
	Record    int64  `json:"record"`
	Holder    string `json:"holder"`              // the agent's certificate that the record names
	Signature []byte `json:"signature,omitempty"` // with the key that follows from the part
}

// info is what the encryption is bound to.
func (p *Parts) info() []byte {
	var b cryptobyte.Builder
	b.AddUint64(uint64(p.Page))
	return digest("enrollgate batch parts 1", []byte(p.Statement+p.Agent), b.BytesOrPanic())
}

func (p *Parts) digest(record int64) []byte {
	var b cryptobyte.Builder
	b.AddUint64(uint64(record))
	return digest("enrollgate batch part signature 1", p.info(), b.BytesOrPanic(), p.Sealed)
}

// certificatesOf are those with an agent's key.
func certificatesOf(list [][]byte, key crypto.PublicKey) (out []*x509.Certificate, err error) {
	for _, der := range list {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate of an agent: %w", err)
		}
		if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key) {
			out = append(out, cert)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the key is that of no designated agent who can open this")
	}
	return out, nil
}

// CertificateOf is the certificate among those of a record's agents that has an agent's key: that which the record names, though the
// agent may have a newer one for the same key.
func CertificateOf(agents [][]byte, key crypto.PublicKey) (*x509.Certificate, error) {
	mine, err := certificatesOf(agents, key)
	if err != nil {
		return nil, err
	}
	return mine[0], nil
}

// Consent is an agent's part in a batch.
type Consent struct {
	info *BatchInfo
	mine []*x509.Certificate
	key  crypto.Decrypter
}

// NewConsent begins to consent, with the agent's key, which may be in a smart card. code is BatchStatement.Code as the worker has
// told it, not as the gateway says. Errors are ErrCode, ErrExpired and others.
func NewConsent(info *BatchInfo, code string, key crypto.Decrypter, now time.Time) (*Consent, error) {
	s := &info.Statement
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	if !codeIs(s.Code(), code) {
		return nil, fmt.Errorf("batch %d: %w: do not consent; ask %s for the code, by phone or in person", info.Batch, ErrCode, s.Order.Worker)
	}
	if now.After(info.Expires) {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, ErrExpired)
	}
	mine, err := certificatesOf(info.Agents, key.Public())
	if err != nil {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	return &Consent{info, mine, key}, nil
}

// Agent is the fingerprint under which the agent consents.
func (c *Consent) Agent() string { return fingerprintOf(c.mine[0]) }

// Page opens the agent's parts of a page and seals them to the batch key; nil where the page has none. skipped are the records of
// which nothing is given, and why: one that cannot be opened, or that is not sealed to the worker too, who is no agent of it then.
func (c *Consent) Page(p *Page) (_ *Parts, skipped []error, _ error) {
	s := &c.info.Statement
	if err := p.check(&s.Order); err != nil {
		return nil, nil, err
	}
	out := &Parts{Batch: c.info.Batch, Page: p.Number, Statement: hex.EncodeToString(s.Hash()), Agent: c.Agent(), Parts: []Part{}}
	var opened []*part
	defer func() {
		for _, o := range opened {
			o.wipe()
		}
	}()
	size := 0
	for i := range p.Items {
		if p.Items[i].Archived == nil {
			continue
		}
		holder, o, err := c.open(&p.Items[i])
		if err != nil {
			skipped = append(skipped, err)
		}
		if err != nil || holder == "" {
			continue
		}
		opened, size = append(opened, o), size+2+len(o.payload)
		out.Parts = append(out.Parts, Part{Record: p.Items[i].Record, Holder: holder})
	}
	if len(opened) == 0 {
		return nil, skipped, nil
	}
	// One buffer that never grows: no copy of a part is left behind.
	b := cryptobyte.NewBuilder(make([]byte, 0, size))
	for _, o := range opened {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(o.payload) })
	}
	plain, err := b.Bytes()
	if err != nil {
		return nil, nil, err
	}
	defer wcce.Wipe(plain)
	return out, skipped, out.seal(s, plain, opened)
}

// seal encrypts the parts and signs them, each with the key that follows from it.
func (p *Parts) seal(s *BatchStatement, plain []byte, opened []*part) (err error) {
	if p.Sealed, err = quorum.SealHybrid(s.PublicKey, p.info(), plain); err != nil {
		return err
	}
	for i, o := range opened {
		if o.signer == nil {
			continue
		}
		if p.Parts[i].Signature, err = quorum.Sign(o.signer, p.digest(p.Parts[i].Record)); err != nil {
			return err
		}
	}
	return nil
}

// open opens the agent's part of one record; holder is "" where the agent has none.
func (c *Consent) open(i *Item) (holder string, _ *part, _ error) {
	o := &c.info.Statement.Order
	r, _, err := i.read(o)
	if err != nil {
		return "", nil, err
	}
	cert := own(r, c.mine)
	if cert == nil {
		return "", nil, nil
	}
	workers, err := c.workers()
	if err != nil {
		return "", nil, err
	}
	if own(r, workers) == nil {
		return "", nil, fmt.Errorf("archived key %d is not sealed to the worker %s (%s), who can be given no part of it", i.Record, o.Worker, c.info.Statement.Agent)
	}
	if _, alone := r.(*single); alone { // the worker opens it without anybody's part
		return fingerprintOf(cert), &part{wipe: func() {}}, nil
	}
	p, err := r.open(cert, c.key)
	if err != nil {
		return "", nil, fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	return fingerprintOf(cert), p, nil
}

// workers are the certificates with the key of the worker's agent.
func (c *Consent) workers() ([]*x509.Certificate, error) {
	for _, der := range c.info.Agents {
		cert, err := x509.ParseCertificate(der)
		if err == nil && fingerprintOf(cert) == c.info.Statement.Agent {
			return certificatesOf(c.info.Agents, cert.PublicKey)
		}
	}
	return nil, fmt.Errorf("the worker's certificate %s is that of no agent: do not go on, and tell your security people", c.info.Statement.Agent)
}

// Verify tells whether the parts are for this statement, and of which records somebody has opened the agent's parts. items are the
// open records of the page; others are left out.
func (p *Parts) Verify(s *BatchStatement, items []Item) (records []int64, err error) {
	if !same([]byte(p.Statement), []byte(hex.EncodeToString(s.Hash()))) {
		return nil, errors.New("the consent is to another batch")
	}
	for _, part := range p.Parts {
		i := slices.IndexFunc(items, func(i Item) bool { return i.Record == part.Record })
		if slices.Contains(records, part.Record) {
			return nil, fmt.Errorf("archived key %d occurs twice", part.Record)
		}
		if i < 0 || items[i].Archived == nil {
			continue
		}
		r, _, err := items[i].read(&s.Order)
		if err != nil {
			return nil, err
		}
		if shared, ok := r.(*shared); ok {
			public, err := shared.verifier(part.Holder)
			if err != nil {
				return nil, fmt.Errorf("archived key %d: %w", part.Record, err)
			}
			if !quorum.Verify(public, p.digest(part.Record), part.Signature) {
				return nil, fmt.Errorf("archived key %d: the consent is not signed by who has opened the agent's share", part.Record)
			}
		}
		records = append(records, part.Record)
	}
	return records, nil
}

// BatchFile is what stays on the worker's machine until the batch is done. It is secret.
type BatchFile struct {
	Batch     int64          `json:"batch"`
	Statement BatchStatement `json:"statement"`
	Private   []byte         `json:"batch_key"`
}

// NewBatchFile makes a batch key and completes the statement. code is Order.Code as the manager has told it.
func NewBatchFile(info *BatchInfo, code string, agentKey crypto.Decrypter) (*BatchFile, error) {
	o := &info.Statement.Order
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	if !codeIs(o.Code(), code) {
		return nil, fmt.Errorf("batch %d: %w: do not begin; ask %s for the code, by phone or in person", info.Batch, ErrCode, o.Manager)
	}
	mine, err := certificatesOf(info.Agents, agentKey.Public())
	if err != nil {
		return nil, fmt.Errorf("batch %d: %w", info.Batch, err)
	}
	key, err := NewCaseKey()
	if err != nil {
		return nil, err
	}
	f := &BatchFile{Batch: info.Batch, Statement: BatchStatement{Order: *o, Agent: fingerprintOf(mine[0]), PublicKey: key.Public()}}
	if f.Private, err = key.private.Bytes(); err != nil {
		return nil, fmt.Errorf("batch key: %w", err)
	}
	return f, f.Statement.Check()
}

// Wipe overwrites the secret.
func (f *BatchFile) Wipe() { wcce.Wipe(f.Private) }

// Result is what the worker has made of a record.
type Result struct {
	Record    int64  `json:"record"`
	Failed    string `json:"failed,omitempty"`    // why it could not be opened
	Signature []byte `json:"signature,omitempty"` // with the archived key
	Format    int    `json:"format,omitempty"`    // of Sealed
	Sealed    []byte `json:"sealed,omitempty"`    // the record, sealed anew
}

// challenge is what the archived key signs. It proves that the key was recovered from just this sealed record after the gateway
// had chosen the nonce; and, in a rewrap, by who has sealed it anew like this.
func (s *BatchStatement) challenge(i *Item, sealed []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint64(uint64(i.Record))
	sum := sha256.Sum256(sealed)
	if s.Order.Purpose == Drill {
		sum = sha256.Sum256(nil)
	}
	return digest("enrollgate batch proof 1: this key was recovered for "+s.Order.Purpose, s.Hash(), b.BytesOrPanic(), []byte(i.KeyID+i.Sealed), sum[:])
}

// Sign signs a result with the archived key of the item.
func (r *Result) Sign(s *BatchStatement, i *Item, key crypto.Signer) (err error) {
	if r.Signature, err = quorum.Sign(key, s.challenge(i, r.Sealed)); err != nil {
		return fmt.Errorf("archived key %d: %w", i.Record, err)
	}
	return nil
}

// Verify tells whether a result was signed with the archived key. cert is the certificate of that key.
func (r *Result) Verify(s *BatchStatement, i *Item, cert *x509.Certificate) error {
	id := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	if hex.EncodeToString(id[:]) != i.KeyID || !quorum.Verify(cert.PublicKey, s.challenge(i, r.Sealed), r.Signature) {
		return fmt.Errorf("archived key %d: the proof is not signed with that key", i.Record)
	}
	return nil
}

// isShared tells whether records for the agents are shared among them, rather than in one CMS message.
func isShared(required int, agents []quorum.Recipient) bool {
	return required > 1 || slices.ContainsFunc(agents, func(a quorum.Recipient) bool { return a.Hybrid != nil })
}

// recipientOf is an agent with the hybrid key that it has signed, if there is one.
func recipientOf(cert *x509.Certificate, keys []quorum.HybridKey) (quorum.Recipient, error) {
	for i := range keys {
		if k := &keys[i]; bytes.Equal(k.Certificate, cert.Raw) {
			_, err := k.Check()
			return quorum.Recipient{Certificate: cert, Hybrid: k.Public, HybridOnly: k.Only}, err
		}
	}
	return quorum.Recipient{Certificate: cert}, nil
}
