// Package coverage says of every valid encryption certificate whether its private key is archived, and who can open it.
//
// Run reads the ledger, and the directory where it is asked to, in pages: a million certificates take no more memory than a
// thousand. Watch is the same for a service: slowly, and only the counts.
package coverage

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// State is whether a private key can be had when it is lost.
type State string

// The states.
const (
	Held    State = "held"    // archived, and enough designated agents can open it
	Missing State = "missing" // not archived
	Closed  State = "closed"  // archived, and too few agents are left to open it
)

// Certificate is one encryption certificate.
type Certificate struct {
	Owner    string    `json:"owner"`
	Template string    `json:"template,omitempty"`
	Serial   string    `json:"serial"` // hexadecimal
	NotAfter time.Time `json:"not_after"`
	Issuer   string    `json:"issuer"`
	Foreign  bool      `json:"foreign"` // found in the directory, and not issued here
	State    State     `json:"state"`
	Why      string    `json:"why,omitempty"`
	Record   int64     `json:"record,omitempty"`
	Policy   string    `json:"policy,omitempty"`
	Required int       `json:"required,omitempty"` // agents that it takes
	Agents   []string  `json:"agents,omitempty"`   // names of those that can open it
	Proven   time.Time `json:"proven,omitzero"`    // when it last was; never where absent
}

// Count is how many certificates of a template are in which state.
type Count struct {
	Template string `json:"template"` // "" for foreign ones
	Held     int64  `json:"held"`
	Missing  int64  `json:"missing"`
	Closed   int64  `json:"closed"`
	Never    int64  `json:"never_proven"` // of those that are archived
}

func (c *Count) add(n *Certificate) {
	switch n.State {
	case Held:
		c.Held++
	case Missing:
		c.Missing++
	case Closed:
		c.Closed++
	}
	if n.State != Missing && n.Proven.IsZero() {
		c.Never++
	}
}

// Summary counts all certificates that were looked at.
type Summary struct {
	Total      Count   `json:"total"`
	Templates  []Count `json:"templates"`
	Unreadable int64   `json:"unreadable"` // values in the directory that are no certificates
}

// Attention tells whether a key would be lost.
func (s *Summary) Attention() bool { return s.Total.Missing+s.Total.Closed > 0 }

// Options say what to look at.
type Options struct {
	DB     *store.DB
	Ledger *ledger.Ledger
	Escrow *escrow.Escrow
	Now    time.Time
	Owner  string // alice or alice@CORP.EXAMPLE; "" means everybody
	// Published calls yield with userCertificate of every account of the directory; nil: the ledger only.
	Published func(ctx context.Context, yield func(account string, values [][]byte) error) error
	// Progress is told after each page how many certificates were read; nil: nobody.
	Progress func(read int64)
	// Rest is how many times as long as a page took to do nothing after it.
	Rest int
}

// page is how many certificates are looked at together.
const page = 500

// run is one pass.
type run struct {
	Options
	holder *escrow.Holder
	counts map[string]*Count
	sum    Summary
	read   int64
	yield  func(Certificate) error
}

// Run calls yield with every valid encryption certificate, in the order in which they were issued, then those of the directory. An
// error of yield ends it.
func Run(ctx context.Context, o Options, yield func(Certificate) error) (*Summary, error) {
	holder, err := o.Escrow.NewHolder(ctx)
	if err != nil {
		return nil, err
	}
	r := &run{Options: o, holder: holder, counts: map[string]*Count{}, yield: yield}
	if err := r.ledger(ctx); err != nil {
		return nil, err
	}
	if o.Published != nil {
		err = r.directory(ctx) // what could be read counts
	}
	for _, name := range slices.Sorted(maps.Keys(r.counts)) {
		r.sum.Templates = append(r.sum.Templates, *r.counts[name])
	}
	return &r.sum, err
}

// candidate is a certificate of which the key is looked up.
type candidate struct {
	Certificate
	cert *x509.Certificate
}

func (r *run) ledger(ctx context.Context) error {
	var last int64
	for {
		begin := time.Now()
		rows, err := r.Ledger.Valid(ctx, r.Now, last, page)
		if err != nil || len(rows) == 0 {
			return err
		}
		last = rows[len(rows)-1].Request
		var list []candidate
		for _, v := range rows {
			owner := v.Caller
			if v.SubjectSID != v.CallerSID {
				owner = string(v.SubjectSID) // an enrollment agent has asked: the record knows the name
			} else if !isOwner(r.Owner, owner) {
				continue
			}
			cert, err := x509.ParseCertificate(v.Certificate)
			if err != nil {
				return fmt.Errorf("request %d: certificate: %w", v.Request, err)
			}
			if Encrypts(cert) {
				list = append(list, candidate{Certificate{Owner: owner, Template: v.Template}, cert})
			}
		}
		if err := r.look(ctx, list, len(rows), begin); err != nil {
			return err
		}
	}
}

// directory looks at what is published and was not issued here: the rest was seen in the ledger.
func (r *run) directory(ctx context.Context) error {
	var list []candidate
	read, begin := 0, time.Now()
	flush := func() error {
		var certs []*x509.Certificate
		for _, c := range list {
			certs = append(certs, c.cert)
		}
		here, err := r.Ledger.Has(ctx, certs)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(c candidate) bool { return here[sha256.Sum256(c.cert.Raw)] })
		err = r.look(ctx, list, read, begin)
		list, read, begin = nil, 0, time.Now()
		return err
	}
	err := r.Published(ctx, func(account string, values [][]byte) error {
		if !isOwner(r.Owner, account) {
			return nil
		}
		for _, der := range values {
			read++
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				r.sum.Unreadable++
			} else if cert.NotAfter.After(r.Now) && Encrypts(cert) {
				list = append(list, candidate{Certificate{Owner: account, Foreign: true}, cert})
			}
			if len(list) == page {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if failed := flush(); failed != nil {
		return failed
	}
	return err
}

// isOwner tells whether an account is the wanted one, with or without its realm.
func isOwner(want, account string) bool {
	name, _, _ := strings.Cut(account, "@")
	return want == "" || strings.EqualFold(want, account) || strings.EqualFold(want, name)
}

// look finds the records of a page of certificates and hands them on. read is how many were read for it, since begin.
func (r *run) look(ctx context.Context, list []candidate, read int, begin time.Time) error {
	var ids [][]byte
	for _, c := range list {
		id := sha256.Sum256(c.cert.RawSubjectPublicKeyInfo)
		ids = append(ids, id[:])
	}
	found, err := r.holder.Find(ctx, ids)
	if err != nil {
		return err
	}
	for i, c := range list {
		n := c.Certificate
		n.Serial, n.NotAfter, n.Issuer, n.State = ledger.SerialText(c.cert), c.cert.NotAfter.UTC(), dn.Show(c.cert.RawIssuer), Missing
		if held, ok := found[string(ids[i])]; ok {
			n.describe(&held)
		}
		if !isOwner(r.Owner, n.Owner) {
			continue
		}
		if err := r.count(&n); err != nil {
			return err
		}
	}
	r.read += int64(read)
	if r.Progress != nil {
		r.Progress(r.read)
	}
	return rest(ctx, r.Rest, begin)
}

func (n *Certificate) describe(h *escrow.Held) {
	n.State, n.Why, n.Record, n.Policy, n.Proven = Held, h.Opening.Why, h.Record, h.Policy, h.Proven
	n.Required, n.Agents = h.Opening.Required, h.Opening.Agents
	if n.Why != "" {
		n.State = Closed
	}
	if !n.Foreign {
		n.Owner = h.Owner
	}
}

func (r *run) count(n *Certificate) error {
	c := r.counts[n.Template]
	if c == nil {
		c = &Count{Template: n.Template}
		r.counts[n.Template] = c
	}
	c.add(n)
	r.sum.Total.add(n)
	return r.yield(*n)
}

// rest does nothing for as many times as long as it was since begin.
func rest(ctx context.Context, times int, begin time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(times) * time.Since(begin)):
		return nil
	}
}
