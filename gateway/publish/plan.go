package publish

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
)

// Item is a certificate that is added or removed, and why.
type Item struct {
	Request  int64     `json:"request,omitempty"` // 0 where another CA issued it
	Template string    `json:"template,omitempty"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Why      string    `json:"why"`
	value    []byte    // DER
}

// rules are what planning depends on beside the certificates.
type rules struct {
	now          time.Time
	supersedes   func(newer, older string) bool // templates, by name; nil: nothing is superseded
	cleanForeign bool
}

// plan is what has to be done to one object, and what is recorded once it is.
type plan struct {
	add, remove          []Item
	published, withdrawn []int64 // request numbers
}

// newPlan compares what the ledger says of an object, oldest first, with the values that it has. A certificate that the
// gateway has issued and that is over, revoked or superseded goes; one that is wanted comes, unless it would go at once; one
// that somebody took away stays away. Values of others stay, but for expired ones where the rules say so.
func newPlan(issued []ledger.Publication, values [][]byte, r rules) plan {
	var out plan
	present := map[string]bool{}
	for _, v := range values {
		present[string(v)] = true
	}
	var kept []ledger.Publication // there when all is done, newest first
	for _, p := range slices.Backward(issued) {
		there := present[string(p.Certificate)]
		delete(present, string(p.Certificate))
		why := r.over(p, kept)
		switch {
		case why != "" && there:
			out.remove = append(out.remove, item(p, why))
		case why == "" && (there || p.State == ledger.Wanted):
			kept = append(kept, p)
		}
		if why == "" && p.State == ledger.Wanted && !there {
			out.add = append(out.add, item(p, "its template asks for it"))
		}
		switch {
		case p.State != ledger.Wanted && p.State != ledger.Published:
		case why != "":
			out.withdrawn = append(out.withdrawn, p.Request)
		default:
			out.published = append(out.published, p.Request)
		}
	}
	if r.cleanForeign {
		out.remove = append(out.remove, foreign(values, present, r.now)...)
	}
	return out
}

// settled tells whether the ledger says already what there is to record.
func (p plan) settled(issued []ledger.Publication, now time.Time) bool {
	return len(p.withdrawn) == 0 && !slices.ContainsFunc(issued, func(i ledger.Publication) bool {
		return i.State == ledger.Wanted || i.State == ledger.Published && (i.Attempts > 0 || !i.Due.After(now))
	})
}

// over tells why a certificate has no place in the directory any more; "" where it has.
func (r rules) over(p ledger.Publication, newer []ledger.Publication) string {
	switch {
	case !p.Revoked.IsZero():
		return "revoked"
	case !p.NotAfter.After(r.now):
		return "expired"
	case r.supersedes == nil:
		return ""
	}
	for _, n := range newer {
		if n.Template == p.Template || r.supersedes(n.Template, p.Template) {
			return fmt.Sprintf("superseded by request %d", n.Request)
		}
	}
	return ""
}

func item(p ledger.Publication, why string) Item {
	return Item{Request: p.Request, Template: p.Template, Serial: p.Serial, NotAfter: p.NotAfter, Why: why, value: p.Certificate}
}

// foreign are the expired certificates among the values that the gateway did not issue. What cannot be read is left alone.
func foreign(values [][]byte, others map[string]bool, now time.Time) []Item {
	var out []Item
	for _, v := range values {
		if !others[string(v)] {
			continue
		}
		if cert, err := x509.ParseCertificate(v); err == nil && now.After(cert.NotAfter) {
			out = append(out, Item{Serial: ledger.SerialText(cert), NotAfter: cert.NotAfter, Why: "expired; issued by others", value: v})
		}
	}
	return out
}

func valuesOf(items []Item) [][]byte {
	var out [][]byte
	for _, i := range items {
		out = append(out, i.value)
	}
	return out
}
