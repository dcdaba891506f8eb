package recovery

import (
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

// Purposes of a batch.
const (
	Rewrap = "rewrap" // records are sealed to other agents
	Drill  = "drill"  // it is proven that records can be opened
)

// Order is what a manager asks to be done to many archived keys. It is fixed on the manager's machine. Pages are the hashes of what
// the gateway has chosen, so that everybody works on the same records.
type Order struct {
	Purpose  string   `json:"purpose"`
	Policy   string   `json:"policy"`
	Required int      `json:"required"` // agents that it takes; rewrapped records take as many
	Manager  string   `json:"manager"`
	Worker   string   `json:"worker"` // account of the agent on whose machine keys are opened
	Reason   string   `json:"reason"`
	Verifies int64    `json:"verifies"` // the rewrap whose records a drill is to prove; 0: of any
	Nonce    []byte   `json:"nonce"`    // 32 random octets of the gateway's: no proof is older than they
	Records  int      `json:"records"`
	Pages    [][]byte `json:"pages"`             // PageHash of each
	Hybrid   bool     `json:"hybrid,omitempty"`  // the policy requires that each of them has a hybrid key
	Targets  []string `json:"targets,omitempty"` // fingerprints of the agents that records are sealed to, sorted; of a rewrap
}

// Limits of a batch.
const (
	PageSize   = 50
	MaxRecords = 20_000
	MaxOrder   = 256 << 10 // octets as JSON
	MaxResults = 10        // records in one message
	MaxPage    = 8 << 20   // octets of a message with parts or results, as JSON
)

// Check refuses an order that lacks something or that a person could misread.
func (o *Order) Check() error {
	pages := (o.Records + PageSize - 1) / PageSize
	switch {
	case o.Purpose != Rewrap && o.Purpose != Drill:
		return fmt.Errorf("a batch is for %s or %s, not %q", Rewrap, Drill, o.Purpose)
	case o.Policy == "" || len(o.Policy) > maxName || !readable(o.Policy):
		return errors.New("the recovery policy is missing or not readable")
	case o.Required < 1 || o.Required > quorum.MaxAgents:
		return fmt.Errorf("%d agents cannot be required", o.Required)
	case o.Manager == "" || len(o.Manager) > maxName || !readable(o.Manager):
		return errors.New("the manager is missing or not readable")
	case o.Worker == "" || len(o.Worker) > maxName || !readable(o.Worker):
		return errors.New("name the agent on whose machine the keys are opened")
	case len(o.Nonce) != sha256.Size || o.Verifies < 0:
		return errors.New("the nonce is malformed")
	case o.Records < 1 || o.Records > MaxRecords || len(o.Pages) != pages:
		return fmt.Errorf("%d records on %d pages: 1 to %d on pages of %d are possible", o.Records, len(o.Pages), MaxRecords, PageSize)
	case (o.Purpose == Rewrap) != (len(o.Targets) > 0) || o.Purpose == Rewrap && len(o.Targets) < o.Required || len(o.Targets) > quorum.MaxAgents:
		return fmt.Errorf("%d agents to seal to: a rewrap needs at least the %d that it takes to open, a drill none", len(o.Targets), o.Required)
	case !slices.IsSorted(o.Targets) || len(slices.Compact(slices.Clone(o.Targets))) != len(o.Targets):
		return errors.New("the agents to seal to are not in order, or one occurs twice")
	}
	for _, h := range o.Pages {
		if len(h) != sha256.Size {
			return errors.New("the hash of a page is malformed")
		}
	}
	for _, f := range o.Targets {
		if raw, err := hex.DecodeString(f); err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != f {
			return fmt.Errorf("%q is no fingerprint: SHA-256 in lower case hexadecimal", f)
		}
	}
	return CheckReason(o.Reason)
}

// Hash identifies the order.
func (o *Order) Hash() []byte {
	var b cryptobyte.Builder
	add := func(part []byte) {
		b.AddUint32LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(part) })
	}
	b.AddUint64(uint64(o.Required))
	b.AddUint64(uint64(o.Verifies))
	b.AddUint64(uint64(o.Records))
	for _, text := range []string{o.Purpose, o.Policy, o.Manager, o.Worker, o.Reason} {
		add([]byte(text))
	}
	add(o.Nonce)
	add(slices.Concat(o.Pages...))
	for _, f := range o.Targets {
		add([]byte(f))
	}
	if o.Hybrid {
		add([]byte("hybrid"))
	}
	return digest("enrollgate batch order 1", b.BytesOrPanic())
}

// Code is the order's hash for people: the manager tells it to the worker, on another way than through the gateway.
func (o *Order) Code() string { return codeOf(o.Hash()) }

// BatchStatement is an order with what the worker's machine adds. Agents consent to just this.
type BatchStatement struct {
	Order     Order  `json:"order"`
	Agent     string `json:"agent"`      // fingerprint of the worker's own agent certificate
	PublicKey []byte `json:"public_key"` // of the batch key
}

// Check refuses a statement that lacks something or that a person could misread.
func (s *BatchStatement) Check() error {
	if err := s.Order.Check(); err != nil {
		return err
	}
	if _, err := quorum.KEM().NewPublicKey(s.PublicKey); err != nil || len(s.Agent) != hex.EncodedLen(sha256.Size) {
		return errors.New("the worker's part of the statement is malformed")
	}
	return nil
}

// Hash identifies the statement.
func (s *BatchStatement) Hash() []byte {
	return digest("enrollgate batch statement 1", s.Order.Hash(), []byte(s.Agent), s.PublicKey)
}

// Code is the statement's hash for people: the worker tells it to the agents whose consent is needed. It covers the worker's key
// and the agents to seal to, so that a gateway that is not to be trusted cannot put in its own.
func (s *BatchStatement) Code() string { return codeOf(s.Hash()) }

// BatchInfo is what the gateway says of a batch to those who work on it.
type BatchInfo struct {
	Batch     int64          `json:"batch"`
	Expires   time.Time      `json:"expires"`
	Statement BatchStatement `json:"statement"` // without the worker's part before the worker has taken it
	Agents    [][]byte       `json:"agents"`    // certificates of agents that can open its records, DER
	Targets   [][]byte       `json:"targets,omitempty"`
	// Hybrid are the targets' hybrid keys, where they have one, as they have signed them.
	Hybrid []quorum.HybridKey `json:"hybrid,omitempty"`
}

// Item is one record of a batch.
type Item struct {
	Record   int64     `json:"record"`
	KeyID    string    `json:"key_id"`
	Owner    string    `json:"owner"`
	Format   int       `json:"format"`
	Required int       `json:"required"`           // as it is sealed now
	Sealed   string    `json:"sealed"`             // SHA-256 of the sealed record when the batch was chosen, hexadecimal
	State    string    `json:"state"`              // of the work on it; open, done or failed
	Archived *Archived `json:"archived,omitempty"` // while it is open
}

// Page is some records of a batch. Parts are those that agents have sealed to the batch key; only the worker is given them.
type Page struct {
	Number    int      `json:"page"`
	Items     []Item   `json:"items"`
	Consented []string `json:"consented"` // fingerprints of the agents whose parts there are
	Parts     []Parts  `json:"parts,omitempty"`
}

// ItemOpen is the state of a record that nothing was done to yet.
const ItemOpen = "open"

// PageHash covers which records are on a page and what they are: not what was done to them since.
func PageHash(number int, items []Item) []byte {
	var b cryptobyte.Builder
	b.AddUint64(uint64(number))
	for _, i := range items {
		b.AddUint64(uint64(i.Record))
		b.AddUint64(uint64(i.Format))
		b.AddUint64(uint64(i.Required))
		for _, text := range []string{i.KeyID, i.Owner, i.Sealed} {
			b.AddUint32LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(text)) })
		}
	}
	return digest("enrollgate batch page 1", b.BytesOrPanic())
}

// check requires that a page is the order's, and what is on it is what was chosen.
func (p *Page) check(o *Order) error {
	if p.Number < 0 || p.Number >= len(o.Pages) || len(p.Items) > PageSize || !same(PageHash(p.Number, p.Items), o.Pages[p.Number]) {
		return fmt.Errorf("page %d is another than was ordered: do not go on, and tell your security people", p.Number)
	}
	return nil
}

// read parses an item's record and checks it against what the page says.
func (i *Item) read(o *Order) (record, *x509.Certificate, error) {
	if i.Archived == nil {
		return nil, nil, fmt.Errorf("archived key %d is %s", i.Record, i.State)
	}
	sum := sha256.Sum256(i.Archived.Sealed)
	if hex.EncodeToString(sum[:]) != i.Sealed || i.Archived.Format != i.Format {
		return nil, nil, fmt.Errorf("archived key %d was changed since the batch was ordered", i.Record)
	}
	r, cert, err := i.Archived.read(&Statement{Record: i.Record, KeyID: i.KeyID, Owner: i.Owner})
	if err != nil {
		return nil, nil, err
	}
	if policy, required, bound := i.Archived.Terms(); bound && (policy != o.Policy || required != i.Required) || i.Required > o.Required {
		return nil, nil, fmt.Errorf("archived key %d takes %d agents under policy %q, not %d under %q", i.Record, required, policy, o.Required, o.Policy)
	}
	return r, cert, nil
}

// own finds the certificate of an agent that a record is sealed to: a renewed one has the same key.
func own(r record, mine []*x509.Certificate) *x509.Certificate {
	for _, c := range mine {
		switch r := r.(type) {
		case *shared:
			if r.record.Holder(fingerprintOf(c)) != nil {
				return c
			}
		case *single:
			if slices.ContainsFunc(r.enveloped.Recipients, func(to wcce.Recipient) bool { return to.Names(c) }) {
				return c
			}
		}
	}
	return nil
}

func fingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
