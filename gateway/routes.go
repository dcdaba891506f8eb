package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Share is a CA that may sign, and for which part of the orders it is the first to be tried.
type Share struct {
	CA      string `json:"ca"`
	Percent int    `json:"percent"` // 0: only where those before it do not take the order
}

// plan is where orders for one account and template go.
type plan struct {
	first    []config.Destination
	failover []string
}

// planFor finds the route for a request to a published CA; without one that CA signs itself.
func (g *Gateway) planFor(ctx context.Context, ca *CA, template string, in templates.Input) (plan, error) {
	for _, r := range g.Config.Routes {
		ok, err := g.routed(ctx, &r, ca, template, in)
		if err != nil {
			return plan{}, hresult.Wrap(hresult.ServerUnavailable, err, "the CA for the request cannot be found out; try again")
		}
		if ok {
			return plan{r.To, r.Failover}, nil
		}
	}
	return plan{first: []config.Destination{{CA: ca.Name}}}, nil
}

// routed tells whether a route is for a request.
func (g *Gateway) routed(ctx context.Context, r *config.Route, ca *CA, template string, in templates.Input) (bool, error) {
	has := func(list []string, name string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
	}
	if !has(r.CAs, ca.Name) || !has(r.Templates, template) || !has(r.Domains, in.Subject.Domain.DNS) || len(r.Sites) > 0 && !has(r.Sites, g.site()) {
		return false, nil
	}
	if len(r.Groups) == 0 {
		return true, nil
	}
	member := in.Caller.Token()
	if in.Subject.SID != in.Caller.SID {
		member = security.NewToken(append(in.Subject.Groups, in.Subject.SID)...)
	}
	return g.isOneOf(ctx, member, r.Groups)
}

// site is the Active Directory site that the gateway's domain controller is in; "" where it is not known.
func (g *Gateway) site() string {
	if g.Forest == nil {
		return ""
	}
	return g.Forest.Site()
}

// signersFor are the CAs that may sign, in the order in which they are tried. draw, any octets of the request, decides by weight
// which one is first: a repetition of the request has the same.
func (g *Gateway) signersFor(p plan, draw []byte) []*CA {
	total := 0
	for _, d := range p.first {
		total += max(d.Weight, 1)
	}
	var octets [8]byte
	copy(octets[:], draw)
	n, begin := int(binary.BigEndian.Uint64(octets[:])%uint64(total)), 0
	for i, d := range p.first {
		if n -= max(d.Weight, 1); n < 0 {
			begin = i
			break
		}
	}
	var out []*CA
	add := func(name string) {
		if ca := g.Signer(name); ca != nil && !slices.Contains(out, ca) {
			out = append(out, ca)
		}
	}
	for i := range p.first {
		add(p.first[(begin+i)%len(p.first)].CA)
	}
	for _, name := range p.failover {
		add(name)
	}
	return out
}

// shares is the plan for people.
func (p plan) shares() []Share {
	total := 0
	for _, d := range p.first {
		total += max(d.Weight, 1)
	}
	var out []Share
	for _, d := range p.first {
		out = append(out, Share{d.CA, 100 * max(d.Weight, 1) / total})
	}
	for _, name := range p.failover {
		out = append(out, Share{CA: name})
	}
	return out
}

// able are the signers that can carry an order; an error, with the reason of each, where none can.
func able(signers []*CA, order upstream.Order) ([]*CA, error) {
	var out []*CA
	var reasons error
	for _, ca := range signers {
		if err := upstream.Check(ca.Issuer, order); err != nil {
			reasons = errors.Join(reasons, err)
			continue
		}
		out = append(out, ca)
	}
	if len(out) == 0 {
		return nil, hresult.New(hresult.NotSupported, "%v", reasons)
	}
	return out, nil
}

func names(cas []*CA) []string {
	out := make([]string, len(cas))
	for i, ca := range cas {
		out[i] = ca.Name
	}
	return out
}
