package soap

import (
	"fmt"
	"strconv"
)

// policyDecoder reads a GetPoliciesResponse. References that do not resolve are errors.
type policyDecoder struct {
	oids map[string]OIDRef
	cas  map[string]int
	err  error
}

func (d *policyDecoder) fail(err error) {
	if d.err == nil && err != nil {
		d.err = err
	}
}

// decodePolicies reads the body of a reply.
func decodePolicies(body *element) (*Policies, error) {
	if !body.is(nsPolicy, "GetPoliciesResponse") {
		return nil, fmt.Errorf("the reply is %s, not GetPoliciesResponse", body.name.Local)
	}
	r := &reader{e: body, space: nsPolicy}
	d := &policyDecoder{oids: map[string]OIDRef{}, cas: map[string]int{}}
	oids := r.maybe("oIDs")
	for _, o := range oids.all("oID") {
		id := o.text("oIDReferenceID")
		ref := OIDRef{Value: o.text("value"), Group: o.mustNumber("group"), Name: o.text("defaultName")}
		if _, ok := d.oids[id]; ok || id == "" || ref.Value == "" {
			d.fail(fmt.Errorf("oID %q: no or repeated oIDReferenceID, or no value", id))
		}
		d.oids[id] = ref
		d.fail(o.err)
	}
	p := &Policies{}
	cas := r.maybe("cAs")
	for i, ca := range cas.all("cA") {
		id := ca.text("cAReferenceID")
		if _, ok := d.cas[id]; ok || id == "" {
			d.fail(fmt.Errorf("cA %d: no or repeated cAReferenceID", i))
		}
		d.cas[id] = i
		p.CAs = append(p.CAs, d.ca(ca))
	}
	d.fail(oids.err)
	d.fail(cas.err)
	d.response(r.sub("response"), p)
	d.fail(r.err)
	if d.err != nil {
		return nil, fmt.Errorf("GetPoliciesResponse: %w", d.err)
	}
	return p, nil
}

func (d *policyDecoder) ca(r *reader) CA {
	ca := CA{Certificate: r.octets("certificate"), EnrollPermission: r.bool("enrollPermission")}
	uris := r.maybe("uris")
	for _, u := range uris.all("cAURI") {
		ca.URIs = append(ca.URIs, CAURI{
			ClientAuthentication: int(u.mustNumber("clientAuthentication")),
			URI:                  u.text("uri"),
			Priority:             u.number("priority"),
			RenewalOnly:          u.bool("renewalOnly"),
		})
		d.fail(u.err)
	}
	d.fail(uris.err)
	d.fail(r.err)
	return ca
}

func (d *policyDecoder) response(r *reader, p *Policies) {
	p.ID = r.text("policyID")
	p.FriendlyName = r.text("policyFriendlyName")
	p.NextUpdateHours = r.number("nextUpdateHours")
	p.NotChanged = r.bool("policiesNotChanged")
	policies := r.maybe("policies")
	for _, e := range policies.all("policy") {
		p.Policies = append(p.Policies, d.policy(e))
	}
	d.fail(policies.err)
	d.fail(r.err)
}

func (d *policyDecoder) policy(r *reader) Policy {
	var p Policy
	if ref := d.oid(r, "policyOIDReference"); ref != nil {
		p.OID = *ref
	} else {
		d.fail(fmt.Errorf("policy: policyOIDReference is missing"))
	}
	cas := r.maybe("cAs")
	for _, ref := range cas.all("cAReference") {
		i, ok := d.cas[ref.value()]
		if !ok {
			d.fail(fmt.Errorf("policy: cAReference %q does not resolve", ref.value()))
		}
		p.CAs = append(p.CAs, i)
	}
	a := r.sub("attributes")
	p.CommonName = a.text("commonName")
	p.Schema = a.mustNumber("policySchema")
	validity := a.sub("certificateValidity")
	p.ValidityPeriodSeconds = validity.mustNumber64("validityPeriodSeconds")
	p.RenewalPeriodSeconds = validity.mustNumber64("renewalPeriodSeconds")
	permission := a.sub("permission")
	p.Enroll, p.AutoEnroll = permission.bool("enroll"), permission.bool("autoEnroll")
	p.PrivateKey = d.privateKey(a.sub("privateKeyAttributes"))
	revision := a.sub("revision")
	p.MajorRevision, p.MinorRevision = revision.mustNumber("majorRevision"), revision.number("minorRevision")
	p.Superseded = d.strings(a, "supersededPolicies", "commonName")
	p.PrivateKeyFlags, p.SubjectNameFlags = a.number("privateKeyFlags"), a.number("subjectNameFlags")
	p.EnrollmentFlags, p.GeneralFlags = a.number("enrollmentFlags"), a.number("generalFlags")
	p.HashAlgorithm = d.oid(a, "hashAlgorithmOIDReference")
	p.RA = d.ra(a.maybe("rARequirements"))
	p.Archival = d.archival(a.maybe("keyArchivalAttributes"))
	p.Extensions = d.extensions(a.maybe("extensions"))
	for _, x := range []*reader{r, cas, a, validity, permission, revision} {
		d.fail(x.err)
	}
	return p
}

func (d *policyDecoder) privateKey(r *reader) PrivateKeyAttributes {
	k := PrivateKeyAttributes{
		MinimalKeyLength: r.mustNumber("minimalKeyLength"),
		KeySpec:          r.number("keySpec"),
		KeyUsage:         r.number("keyUsageProperty"),
		Permissions:      r.text("permissions"),
		Algorithm:        d.oid(r, "algorithmOIDReference"),
		Providers:        d.strings(r, "cryptoProviders", "provider"),
	}
	d.fail(r.err)
	return k
}

func (d *policyDecoder) ra(r *reader) *RARequirements {
	if r.e == nil {
		d.fail(r.err)
		return nil
	}
	ra := &RARequirements{Signatures: r.mustNumber("rASignatures"), EKUs: d.refs(r, "rAEKUs"), Policies: d.refs(r, "rAPolicies")}
	d.fail(r.err)
	return ra
}

func (d *policyDecoder) archival(r *reader) *KeyArchival {
	if r.e == nil {
		d.fail(r.err)
		return nil
	}
	k := &KeyArchival{KeyLength: r.mustNumber("symmetricAlgorithmKeyLength")}
	if ref := d.oid(r, "symmetricAlgorithmOIDReference"); ref != nil {
		k.Algorithm = *ref
	} else {
		d.fail(fmt.Errorf("keyArchivalAttributes: symmetricAlgorithmOIDReference is missing"))
	}
	d.fail(r.err)
	return k
}

func (d *policyDecoder) extensions(r *reader) []Extension {
	var out []Extension
	for _, e := range r.all("extension") {
		x := Extension{Critical: e.bool("critical"), Value: e.octets("value")}
		if ref := d.oid(e, "oIDReference"); ref != nil {
			x.OID = *ref
		} else {
			d.fail(fmt.Errorf("extension: oIDReference is missing"))
		}
		out = append(out, x)
		d.fail(e.err)
	}
	d.fail(r.err)
	return out
}

// oid resolves a reference; nil where the element is nil or absent.
func (d *policyDecoder) oid(r *reader, local string) *OIDRef {
	id := r.text(local)
	if id == "" {
		return nil
	}
	ref, ok := d.oids[id]
	if !ok {
		d.fail(fmt.Errorf("%s: %s %q does not resolve", r.name(), local, id))
	}
	return &ref
}

func (d *policyDecoder) refs(r *reader, local string) []OIDRef {
	c := r.maybe(local)
	var out []OIDRef
	for _, e := range c.all("oIDReference") {
		ref, ok := d.oids[e.value()]
		if !ok {
			d.fail(fmt.Errorf("%s: oIDReference %q does not resolve", local, e.value()))
		}
		out = append(out, ref)
	}
	d.fail(c.err)
	return out
}

func (d *policyDecoder) strings(r *reader, local, item string) []string {
	c := r.maybe(local)
	var out []string
	for _, e := range c.all(item) {
		out = append(out, e.value())
		d.fail(e.err)
	}
	d.fail(c.err)
	return out
}

func (r *reader) mustNumber64(local string) uint64 {
	v := r.text(local)
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		r.fail(fmt.Errorf("%s: %s %q is not a number", r.name(), local, v))
	}
	return n
}
