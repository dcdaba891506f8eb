package soap

import "slices"

// Encode returns the GetPoliciesResponse element. The order of elements is the schema's, and nillable elements without
// a value are there as xsi:nil: Windows answers anything else with WS_E_INVALID_FORMAT. The result is kept and must not
// be changed.
func (p *Policies) Encode() []byte {
	if b := p.encoded.Load(); b != nil {
		return *b
	}
	w := &writer{}
	w.open(`GetPoliciesResponse xmlns="` + nsPolicy + `" xmlns:xsi="` + nsInstance + `"`)
	oids := &oidTable{}
	p.encodeResponse(w, oids)
	if p.NotChanged || len(p.CAs) == 0 {
		w.null("cAs")
	} else {
		p.encodeCAs(w)
	}
	if len(oids.list) == 0 {
		w.null("oIDs")
	} else {
		oids.encode(w)
	}
	w.close("GetPoliciesResponse")
	b := slices.Clip(w.Bytes())
	p.encoded.Store(&b)
	return b
}

func (p *Policies) encodeResponse(w *writer, oids *oidTable) {
	w.open("response")
	w.text("policyID", p.ID)
	w.textOrNil("policyFriendlyName", p.FriendlyName)
	w.numberOrNil("nextUpdateHours", p.NextUpdateHours)
	if p.NotChanged {
		w.bool("policiesNotChanged", true)
	} else {
		w.null("policiesNotChanged")
	}
	if p.NotChanged || len(p.Policies) == 0 {
		w.null("policies")
	} else {
		w.open("policies")
		for i := range p.Policies {
			p.Policies[i].encode(w, oids)
		}
		w.close("policies")
	}
	w.close("response")
}

func (p *Policy) encode(w *writer, oids *oidTable) {
	w.open("policy")
	w.number("policyOIDReference", oids.ref(p.OID))
	if len(p.CAs) == 0 {
		w.null("cAs")
	} else {
		w.open("cAs")
		for _, ca := range p.CAs {
			w.number("cAReference", uint64(ca))
		}
		w.close("cAs")
	}
	w.open("attributes")
	w.text("commonName", p.CommonName)
	w.number("policySchema", uint64(p.Schema))
	w.open("certificateValidity")
	w.number("validityPeriodSeconds", p.ValidityPeriodSeconds)
	w.number("renewalPeriodSeconds", p.RenewalPeriodSeconds)
	w.close("certificateValidity")
	w.open("permission")
	w.bool("enroll", p.Enroll)
	w.bool("autoEnroll", p.AutoEnroll)
	w.close("permission")
	p.PrivateKey.encode(w, oids)
	w.open("revision")
	w.number("majorRevision", uint64(p.MajorRevision))
	w.numberOrNil("minorRevision", p.MinorRevision)
	w.close("revision")
	texts(w, "supersededPolicies", "commonName", p.Superseded)
	w.numberOrNil("privateKeyFlags", p.PrivateKeyFlags)
	w.numberOrNil("subjectNameFlags", p.SubjectNameFlags)
	w.numberOrNil("enrollmentFlags", p.EnrollmentFlags)
	w.numberOrNil("generalFlags", p.GeneralFlags)
	oids.refOrNil(w, "hashAlgorithmOIDReference", p.HashAlgorithm)
	p.RA.encode(w, oids)
	p.Archival.encode(w, oids)
	encodeExtensions(w, oids, p.Extensions)
	w.close("attributes")
	w.close("policy")
}

func (k *PrivateKeyAttributes) encode(w *writer, oids *oidTable) {
	w.open("privateKeyAttributes")
	w.number("minimalKeyLength", uint64(k.MinimalKeyLength))
	w.numberOrNil("keySpec", k.KeySpec)
	w.numberOrNil("keyUsageProperty", k.KeyUsage)
	w.textOrNil("permissions", k.Permissions)
	oids.refOrNil(w, "algorithmOIDReference", k.Algorithm)
	texts(w, "cryptoProviders", "provider", k.Providers)
	w.close("privateKeyAttributes")
}

func (r *RARequirements) encode(w *writer, oids *oidTable) {
	if r == nil {
		w.null("rARequirements")
		return
	}
	w.open("rARequirements")
	w.number("rASignatures", uint64(r.Signatures))
	oids.refs(w, "rAEKUs", r.EKUs)
	oids.refs(w, "rAPolicies", r.Policies)
	w.close("rARequirements")
}

func (k *KeyArchival) encode(w *writer, oids *oidTable) {
	if k == nil {
		w.null("keyArchivalAttributes")
		return
	}
	w.open("keyArchivalAttributes")
	w.number("symmetricAlgorithmOIDReference", oids.ref(k.Algorithm))
	w.number("symmetricAlgorithmKeyLength", uint64(k.KeyLength))
	w.close("keyArchivalAttributes")
}

func encodeExtensions(w *writer, oids *oidTable, extensions []Extension) {
	if len(extensions) == 0 {
		w.null("extensions")
		return
	}
	w.open("extensions")
	for _, e := range extensions {
		w.open("extension")
		w.number("oIDReference", oids.ref(e.OID))
		w.bool("critical", e.Critical)
		if e.Value == nil {
			w.null("value")
		} else {
			w.octets("value", e.Value)
		}
		w.close("extension")
	}
	w.close("extensions")
}

func (p *Policies) encodeCAs(w *writer) {
	w.open("cAs")
	for i, ca := range p.CAs {
		w.open("cA")
		w.open("uris")
		for _, u := range ca.URIs {
			w.open("cAURI")
			w.number("clientAuthentication", uint64(u.ClientAuthentication))
			w.text("uri", u.URI)
			w.numberOrNil("priority", u.Priority)
			w.bool("renewalOnly", u.RenewalOnly)
			w.close("cAURI")
		}
		w.close("uris")
		w.octets("certificate", ca.Certificate)
		w.bool("enrollPermission", ca.EnrollPermission)
		w.number("cAReferenceID", uint64(i))
		w.close("cA")
	}
	w.close("cAs")
}

func (t *oidTable) refOrNil(w *writer, name string, o *OIDRef) {
	if o == nil {
		w.null(name)
		return
	}
	w.number(name, t.ref(*o))
}

func (t *oidTable) refs(w *writer, name string, oids []OIDRef) {
	if len(oids) == 0 {
		w.null(name)
		return
	}
	w.open(name)
	for _, o := range oids {
		w.number("oIDReference", t.ref(o))
	}
	w.close(name)
}

func (t *oidTable) encode(w *writer) {
	w.open("oIDs")
	for i, o := range t.list {
		w.open("oID")
		w.text("value", o.Value)
		w.number("group", uint64(o.Group))
		w.number("oIDReferenceID", uint64(i))
		w.textOrNil("defaultName", o.Name)
		w.close("oID")
	}
	w.close("oIDs")
}

// texts writes a collection of strings, or nil where there are none.
func texts(w *writer, name, item string, values []string) {
	if len(values) == 0 {
		w.null(name)
		return
	}
	w.open(name)
	for _, v := range values {
		w.text(item, v)
	}
	w.close(name)
}
