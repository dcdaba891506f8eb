package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/google/uuid"
)

// urlName is how a CA is written in a URL's path.
func urlName(name string) string { return url.PathEscape(name) }

// maxCachedPolicies bounds the cache of policy replies: with 500 templates one has a megabyte. One entry serves all
// callers with the same rights.
const maxCachedPolicies = 128

// policyCache keeps encoded policy replies for one snapshot. Rights depend only on the SIDs that the access control
// lists name, so the key is the part of the caller's token that they name: a forest with a million users has few.
type policyCache struct {
	mu       sync.Mutex
	snapshot *templates.Snapshot
	named    security.Token
	entries  map[string]*soap.Policies
}

// lookup returns the entry for a caller and request, or makes it.
func (c *policyCache) lookup(s *templates.Snapshot, caller templates.Caller, filter string, build func() *soap.Policies) *soap.Policies {
	c.mu.Lock()
	if !sameContents(c.snapshot, s) {
		c.snapshot, c.named, c.entries = s, namedSIDs(s), map[string]*soap.Policies{}
	}
	key := c.key(caller, filter)
	p := c.entries[key]
	c.mu.Unlock()
	if p != nil {
		return p
	}
	p = build()
	c.mu.Lock()
	defer c.mu.Unlock()
	if sameContents(c.snapshot, s) {
		if len(c.entries) >= maxCachedPolicies {
			clear(c.entries)
		}
		c.entries[key] = p
	}
	return p
}

// sameContents: a snapshot that was only confirmed shares its slices with the one before.
func sameContents(a, b *templates.Snapshot) bool {
	return a == b || a != nil && b != nil && len(a.Templates) > 0 && len(b.Templates) > 0 && len(a.Services) > 0 &&
		len(b.Services) > 0 && &a.Templates[0] == &b.Templates[0] && &a.Services[0] == &b.Services[0]
}

func (c *policyCache) key(caller templates.Caller, filter string) string {
	var relevant []string
	for _, sid := range append([]security.SID{caller.SID}, caller.Groups...) {
		if c.named.Has(sid) {
			relevant = append(relevant, string(sid))
		}
	}
	slices.Sort(relevant)
	if caller.Machine {
		filter += "machine"
	}
	return strings.Join(slices.Compact(relevant), " ") + "|" + filter
}

// namedSIDs collects every SID that an access control list of the snapshot names.
func namedSIDs(s *templates.Snapshot) security.Token {
	named := security.Token{}
	add := func(d *security.Descriptor) {
		if d == nil {
			return
		}
		named[d.Owner] = struct{}{} // an ACE for OWNER RIGHTS concerns the owner
		for i := range d.DACL {
			named[d.DACL[i].SID] = struct{}{}
		}
	}
	for _, t := range s.Templates {
		add(t.Security)
	}
	for _, e := range s.Services {
		add(e.Security)
	}
	return named
}

// Policies answers GetPolicies with what the caller may enroll for ([MS-XCEP] 3.1.4.1.3.11). A caller who is known by a
// certificate alone only renews, which some templates allow without the Enroll right.
func (g *Gateway) Policies(_ context.Context, caller templates.Caller, req soap.GetPoliciesRequest, renewalOnly bool) (*soap.Policies, error) {
	s := g.Directory.Snapshot()
	if s == nil {
		return nil, hresult.New(hresult.ServerUnavailable, "the directory has not been read yet; try again")
	}
	if age := g.now().Sub(s.Taken); g.Config.Directory.MaxAge > 0 && age > g.Config.Directory.MaxAge {
		return nil, hresult.New(hresult.ServerUnavailable, "the directory was last read %s ago, which is too long", age)
	}
	g.metrics.policies.Inc()
	if len(req.PolicyOIDs) > 0 { // rare, and the client chooses: not for the cache
		return g.buildPolicies(s, caller, req, renewalOnly), nil
	}
	// The versions that templates name have four bits; a larger one filters nothing.
	req.ClientVersion, req.ServerVersion = min(max(req.ClientVersion, 0), 16), min(max(req.ServerVersion, 0), 16)
	_, generation := g.hazards(s)
	// The day: periods shrink as a CA gets old.
	filter := fmt.Sprintf("%d %d %d %t %d ", generation, req.ClientVersion, req.ServerVersion, renewalOnly, g.now().Unix()/86400)
	return g.policies.lookup(s, caller, filter, func() *soap.Policies { return g.buildPolicies(s, caller, req, renewalOnly) }), nil
}

func (g *Gateway) buildPolicies(s *templates.Snapshot, caller templates.Caller, req soap.GetPoliciesRequest, renewalOnly bool) *soap.Policies {
	hours := uint32(g.Config.Policy.UpdateHours)
	out := &soap.Policies{ID: g.policyID(s), FriendlyName: g.Config.Policy.FriendlyName, NextUpdateHours: &hours}
	offers := map[*templates.Template]*soap.Policy{}
	hazards, _ := g.hazards(s)
	for _, ca := range g.CAs {
		service := s.Service(ca.Name)
		if service == nil {
			continue
		}
		index, end := -1, ca.issuing().NotAfter
		for _, t := range s.Templates {
			enroll, auto := templates.Rights(t, service, caller)
			enroll = enroll || renewalOnly && templates.RenewsByKey(t)
			served := templates.Unsupported(t) == nil && len(hazards[t.Name]) == 0
			if !service.Offers(t.Name) || !enroll || !wanted(t, req) || !templates.ForCaller(t, caller) || !served {
				continue
			}
			if index < 0 {
				index = len(out.CAs)
				out.CAs = append(out.CAs, g.policyCA(ca))
			}
			p := offers[t]
			if p == nil {
				p = policyOf(s, t)
				offers[t] = p
			}
			// Of several CAs the one that ends first counts: the client may go to any.
			validity, overlap := templates.Periods(t, end, g.now())
			p.ValidityPeriodSeconds = min(p.ValidityPeriodSeconds, uint64(validity.Seconds()))
			p.RenewalPeriodSeconds = min(p.RenewalPeriodSeconds, uint64(overlap.Seconds()))
			p.Enroll, p.AutoEnroll = true, p.AutoEnroll || auto
			p.CAs = append(p.CAs, index)
		}
	}
	for _, p := range offers {
		out.Policies = append(out.Policies, *p)
	}
	slices.SortFunc(out.Policies, func(a, b soap.Policy) int { return cmp.Compare(a.CommonName, b.CommonName) })
	return out
}

// wanted applies the client's filter ([MS-XCEP] 3.1.4.1.3.20).
func wanted(t *templates.Template, req soap.GetPoliciesRequest) bool {
	if len(req.PolicyOIDs) > 0 && !slices.Contains(req.PolicyOIDs, t.OID) {
		return false
	}
	return (req.ClientVersion <= 0 || t.MinimumClient() <= req.ClientVersion) && (req.ServerVersion <= 0 || t.MinimumServer() <= req.ServerVersion)
}

// policyID is the configured one, or one derived from the forest, so that it never changes.
func (g *Gateway) policyID(s *templates.Snapshot) string {
	if g.Config.Policy.ID != "" {
		return g.Config.Policy.ID
	}
	return "{" + strings.ToUpper(uuid.NewSHA1(uuid.NameSpaceX500, []byte(strings.ToLower(s.ConfigDN))).String()) + "}"
}

func (g *Gateway) policyCA(ca *CA) soap.CA {
	return soap.CA{Certificate: ca.Identity.Certificate().Raw, EnrollPermission: true, URIs: g.uris(ca.Name)}
}

// enrollURL is the address of a CA's enrollment service.
func enrollURL(host string, way soap.Way, ca string) string {
	return (&url.URL{Scheme: "https", Host: host, Path: way.CESPath(ca)}).String()
}

func policyOf(s *templates.Snapshot, t *templates.Template) *soap.Policy {
	ptr := func(v uint32) *uint32 { return &v }
	p := &soap.Policy{
		OID: soap.OIDRef{Value: t.OID, Group: soap.GroupTemplate, Name: displayName(s, t)}, CommonName: t.Name, Schema: uint32(t.Schema),
		ValidityPeriodSeconds: uint64(t.Validity.Seconds()), RenewalPeriodSeconds: uint64(t.Overlap.Seconds()),
		MajorRevision: uint32(t.Major), MinorRevision: ptr(uint32(t.Minor)), Superseded: t.Supersedes,
		PrivateKeyFlags: ptr(t.PrivateKeyFlags), SubjectNameFlags: ptr(t.NameFlags), EnrollmentFlags: ptr(t.EnrollmentFlags), GeneralFlags: ptr(t.GeneralFlags),
		PrivateKey: soap.PrivateKeyAttributes{MinimalKeyLength: uint32(t.MinKeySize), KeySpec: ptr(uint32(t.KeySpec)), Providers: t.Providers, Permissions: t.KeySecurity},
	}
	if t.CNGKeyUsage != 0 {
		p.PrivateKey.KeyUsage = ptr(t.CNGKeyUsage)
	}
	if oid := curveOIDs[strings.ToUpper(t.AsymmetricAlg)]; oid != "" {
		p.PrivateKey.Algorithm = &soap.OIDRef{Value: oid, Group: soap.GroupPublicKey, Name: t.AsymmetricAlg}
		p.PrivateKey.KeySpec = nil
	}
	if oid := hashOIDs[strings.ToUpper(t.HashAlg)]; oid != "" {
		p.HashAlgorithm = &soap.OIDRef{Value: oid, Group: soap.GroupHash, Name: strings.ToLower(t.HashAlg)}
	}
	if t.RASignatures > 0 {
		p.RA = &soap.RARequirements{Signatures: uint32(t.RASignatures), EKUs: oidRefs(soap.GroupEKU, t.RAAppPolicies), Policies: oidRefs(soap.GroupPolicy, t.RAPolicies)}
	}
	if t.Archives() {
		p.Archival = archivalOf(t)
	}
	infoOID, info := templates.TemplateInfoValue(t)
	p.Extensions = append(p.Extensions, soap.Extension{OID: extensionRef(infoOID, "Certificate Template Information"), Value: info})
	for _, e := range []struct {
		oid, name string
		value     []byte
	}{
		{wcce.OIDEKU, "Enhanced Key Usage", templates.EKUValue(t)}, {wcce.OIDKeyUsage, "Key Usage", templates.KeyUsageValue(t)},
		{wcce.OIDAppPolicies, "Application Policies", templates.AppPoliciesValue(t)},
	} {
		if e.value != nil {
			p.Extensions = append(p.Extensions, soap.Extension{OID: extensionRef(e.oid, e.name), Critical: slices.Contains(t.CriticalExtensions, e.oid), Value: e.value})
		}
	}
	return p
}

func oidRefs(group uint32, oids []string) []soap.OIDRef {
	var out []soap.OIDRef
	for _, oid := range oids {
		out = append(out, soap.OIDRef{Value: oid, Group: group, Name: oid})
	}
	return out
}

func extensionRef(oid, name string) soap.OIDRef {
	return soap.OIDRef{Value: oid, Group: soap.GroupExtension, Name: name}
}

func displayName(s *templates.Snapshot, t *templates.Template) string {
	return cmp.Or(t.DisplayName, s.OIDs[t.OID].DisplayName, t.Name)
}

var curveOIDs = map[string]string{
	"ECDSA_P256": "1.2.840.10045.3.1.7", "ECDSA_P384": "1.3.132.0.34", "ECDSA_P521": "1.3.132.0.35",
	"ECDH_P256": "1.2.840.10045.3.1.7", "ECDH_P384": "1.3.132.0.34", "ECDH_P521": "1.3.132.0.35",
}

var hashOIDs = map[string]string{"SHA1": wcce.OIDSHA1, "SHA256": wcce.OIDSHA256, "SHA384": wcce.OIDSHA384, "SHA512": wcce.OIDSHA512}

// archivalOf tells the client how to encrypt its key: the template's cipher, or 3DES as Windows without one.
func archivalOf(t *templates.Template) *soap.KeyArchival {
	name, oid, bits := "3des", wcce.OIDDESEDE3CBC, uint32(168)
	if strings.EqualFold(t.SymmetricAlg, "AES") {
		switch t.SymmetricKeyLength {
		case 128:
			name, oid, bits = "aes128", wcce.OIDAES128CBC, 128
		case 192:
			name, oid, bits = "aes192", wcce.OIDAES192CBC, 192
		default:
			name, oid, bits = "aes256", wcce.OIDAES256CBC, 256
		}
	}
	return &soap.KeyArchival{Algorithm: soap.OIDRef{Value: oid, Group: soap.GroupEncryption, Name: name}, KeyLength: bits}
}
