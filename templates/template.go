// Package templates turns the attributes of a forest's certificate templates into typed values, and decides who may
// have which certificate and what is in it.
//
// Parse reads one template object; Decide is the one implementation of policy, used by the gateway when it serves and
// by the explain command. The package does no input or output: values in, values out.
package templates

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates/security"
)

// Template is a pKICertificateTemplate object ([MS-CRTD] 2), all schema versions.
type Template struct {
	Name        string // cn
	DisplayName string
	DN          string
	OID         string // msPKI-Cert-Template-OID; empty in schema 1 objects that lack it
	Schema      int    // 1 to 4
	Major       int    // revision
	Minor       int    // msPKI-Template-Minor-Revision

	GeneralFlags    uint32
	EnrollmentFlags uint32
	PrivateKeyFlags uint32
	NameFlags       uint32

	Validity time.Duration // pKIExpirationPeriod
	Overlap  time.Duration // pKIOverlapPeriod: how long before the end a client renews

	KeySpec            int      // pKIDefaultKeySpec: 1 key exchange, 2 signature
	KeyUsage           uint16   // pKIKeyUsage: first octet in the high byte, as in the certificate's bit string
	MaxIssuingDepth    int      // pKIMaxIssuingDepth; -1 means no limit
	CriticalExtensions []string // OIDs
	EKUs               []string // pKIExtendedKeyUsage
	AppPolicies        []string // msPKI-Certificate-Application-Policy
	IssuancePolicies   []string // msPKI-Certificate-Policy
	Providers          []string // pKIDefaultCSPs, in order of preference, without the number
	MinKeySize         int      // msPKI-Minimal-Key-Size, bits
	Supersedes         []string // names of templates

	RASignatures       int      // msPKI-RA-Signature
	RAPolicies         []string // msPKI-RA-Policies
	RAAppPolicies      []string // application policies that an RA signature must have
	AsymmetricAlg      string   // "RSA", "ECDSA_P256", …; empty means RSA
	HashAlg            string   // "SHA256"; empty means the client's default
	SymmetricAlg       string   // for archived keys: "3DES", "AES"; empty means 3DES
	SymmetricKeyLength int      // bits; 0 means the algorithm's default
	CNGKeyUsage        uint32   // msPKI-Key-Usage: what the client's key may be used for
	KeySecurity        string   // msPKI-Key-Security-Descriptor: SDDL for the client's key

	Security *security.Descriptor
}

// Archives tells whether the template demands that the private key is archived.
func (t *Template) Archives() bool { return t.PrivateKeyFlags&KeyRequireArchival != 0 }

// Machine tells whether the template is for computers.
func (t *Template) Machine() bool { return t.GeneralFlags&FlagMachineType != 0 }

// EnrolleeSuppliesSubject tells whether names come from the request.
func (t *Template) EnrolleeSuppliesSubject() bool {
	return t.NameFlags&NameEnrolleeSuppliesSubject != 0
}

// Policies returns the purposes that certificates get: the application policies, or the extended key usages where
// the template has none.
func (t *Template) Policies() []string {
	if len(t.AppPolicies) > 0 {
		return t.AppPolicies
	}
	return t.EKUs
}

// MinimumClient and MinimumServer are the Windows generations that the template is meant for ([MS-CRTD] 2.27).
func (t *Template) MinimumClient() int { return int(t.PrivateKeyFlags&keyClientVersionMask) >> 24 }

// MinimumServer is the oldest CA generation that may serve the template.
func (t *Template) MinimumServer() int { return int(t.PrivateKeyFlags&keyServerVersionMask) >> 16 }

// attributeReader collects the first error while a template is read.
type attributeReader struct {
	a   Attributes
	err error
}

func (r *attributeReader) fail(name, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("attribute %s: %s", name, fmt.Sprintf(format, args...))
	}
}

// one returns the single value of an attribute; ok is false where it is absent.
func (r *attributeReader) one(name string) (v []byte, ok bool) {
	values := r.a[strings.ToLower(name)]
	switch len(values) {
	case 0:
		return nil, false
	case 1:
		return values[0], true
	}
	r.fail(name, "%d values, want one", len(values))
	return nil, false
}

// number reads a signed 32-bit LDAP integer; flags use its bit pattern.
func (r *attributeReader) number(name string, missing int32) int32 {
	v, ok := r.one(name)
	if !ok {
		return missing
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n < math.MinInt32 || n > math.MaxUint32 {
		r.fail(name, "%q is not a 32-bit integer", v)
		return missing
	}
	return int32(uint32(n))
}

func (r *attributeReader) flags(name string) uint32 { return uint32(r.number(name, 0)) }

// size reads a number that must not be negative.
func (r *attributeReader) size(name string, missing int32) int {
	n := r.number(name, missing)
	if n < 0 {
		r.fail(name, "%d is negative", n)
	}
	return int(n)
}

// period reads a FILETIME-shaped interval: 8 octets, little-endian, a negative count of 100 ns.
func (r *attributeReader) period(name string) time.Duration {
	v, ok := r.one(name)
	if !ok {
		return 0
	}
	if len(v) != 8 {
		r.fail(name, "%d octets, want 8", len(v))
		return 0
	}
	n := int64(binary.LittleEndian.Uint64(v))
	if n > 0 || n < -math.MaxInt64/100 {
		r.fail(name, "%d is not a negative interval within 292 years", n)
		return 0
	}
	return time.Duration(-n * 100)
}

func (r *attributeReader) oids(name string) []string {
	values := r.a.Strings(name)
	for _, v := range values {
		if !isOID(v) {
			r.fail(name, "%q is not an object identifier", v)
		}
	}
	return values
}

// Parse reads one pKICertificateTemplate object. Anything in it that cannot be understood is an error that names the
// attribute: such a template must not be served.
func Parse(dn string, attrs Attributes) (*Template, error) {
	r := &attributeReader{a: attrs}
	t := &Template{
		Name:            attrs.First("cn"),
		DisplayName:     attrs.First("displayName"),
		DN:              dn,
		OID:             attrs.First("msPKI-Cert-Template-OID"),
		Schema:          r.size("msPKI-Template-Schema-Version", 1),
		Major:           r.size("revision", 0),
		Minor:           r.size("msPKI-Template-Minor-Revision", 0),
		GeneralFlags:    r.flags("flags"),
		EnrollmentFlags: r.flags("msPKI-Enrollment-Flag"),
		PrivateKeyFlags: r.flags("msPKI-Private-Key-Flag"),
		NameFlags:       r.flags("msPKI-Certificate-Name-Flag"),
		Validity:        r.period("pKIExpirationPeriod"),
		Overlap:         r.period("pKIOverlapPeriod"),
		KeySpec:         r.size("pKIDefaultKeySpec", 1),
		MaxIssuingDepth: int(r.number("pKIMaxIssuingDepth", 0)),
		MinKeySize:      r.size("msPKI-Minimal-Key-Size", 0),
		RASignatures:    r.size("msPKI-RA-Signature", 0),

		CriticalExtensions: r.oids("pKICriticalExtensions"),
		EKUs:               r.oids("pKIExtendedKeyUsage"),
		AppPolicies:        r.oids("msPKI-Certificate-Application-Policy"),
		IssuancePolicies:   r.oids("msPKI-Certificate-Policy"),
		RAPolicies:         r.oids("msPKI-RA-Policies"),
		Supersedes:         attrs.Strings("msPKI-Supersede-Templates"),
	}
	if usage, ok := r.one("pKIKeyUsage"); ok {
		if len(usage) == 0 || len(usage) > 2 {
			r.fail("pKIKeyUsage", "%d octets, want 1 or 2", len(usage))
		}
		for i, b := range usage[:min(len(usage), 2)] {
			t.KeyUsage |= uint16(b) << (8 - 8*i)
		}
	}
	t.Providers = providers(attrs.Strings("pKIDefaultCSPs"))
	t.readRAPolicies(r)
	if sd, ok := r.one("nTSecurityDescriptor"); ok {
		var err error
		if t.Security, err = security.ParseDescriptor(sd); err != nil {
			r.fail("nTSecurityDescriptor", "%v", err)
		}
	}
	switch {
	case t.Name == "":
		r.fail("cn", "missing")
	case t.Security == nil:
		r.fail("nTSecurityDescriptor", "missing: the account that reads the directory may not see it")
	case t.OID != "" && !isOID(t.OID):
		r.fail("msPKI-Cert-Template-OID", "%q is not an object identifier", t.OID)
	case t.OID == "" && t.Schema > 1:
		r.fail("msPKI-Cert-Template-OID", "missing in a schema %d template", t.Schema)
	}
	if r.err != nil {
		return nil, fmt.Errorf("template %q: %w", t.Name, r.err)
	}
	return t, nil
}

// providers sorts "1,Microsoft …" values by their number and drops it.
func providers(values []string) []string {
	slices.SortStableFunc(values, func(a, b string) int { return providerRank(a) - providerRank(b) })
	for i, v := range values {
		if _, name, ok := strings.Cut(v, ","); ok {
			values[i] = name
		}
	}
	return values
}

func providerRank(s string) int {
	number, _, _ := strings.Cut(s, ",")
	if n, err := strconv.Atoi(number); err == nil {
		return n
	}
	return math.MaxInt
}

// readRAPolicies reads msPKI-RA-Application-Policies, which holds plain OIDs in schema 1, 2 and in schema 4 with the
// legacy provider bit, else one string of name`type`value` items ([MS-CRTD] 2.23).
func (t *Template) readRAPolicies(r *attributeReader) {
	const attribute = "msPKI-RA-Application-Policies"
	values := r.a.Strings(attribute)
	plain := t.Schema < 3 || t.Schema == 4 && t.PrivateKeyFlags&KeyUseLegacyProvider != 0
	if plain {
		t.RAAppPolicies = r.oids(attribute)
		return
	}
	for _, v := range values {
		if v == "" {
			continue
		}
		items := strings.Split(strings.TrimSuffix(v, "`"), "`")
		if len(items)%3 != 0 {
			r.fail(attribute, "%q is not a list of name`type`value", v)
			return
		}
		for i := 0; i+2 < len(items); i += 3 {
			t.setRAProperty(r, items[i], items[i+1], items[i+2])
		}
	}
}

func (t *Template) setRAProperty(r *attributeReader, name, kind, value string) {
	number := func() uint32 {
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || kind != "DWORD" {
			r.fail("msPKI-RA-Application-Policies", "%s: %q of type %s is not a number", name, value, kind)
		}
		return uint32(n)
	}
	switch name {
	case "msPKI-RA-Application-Policies":
		t.RAAppPolicies = strings.FieldsFunc(value, func(c rune) bool { return c == ',' || c == ' ' })
		for _, oid := range t.RAAppPolicies {
			if !isOID(oid) {
				r.fail("msPKI-RA-Application-Policies", "%q is not an object identifier", oid)
			}
		}
	case "msPKI-Asymmetric-Algorithm":
		t.AsymmetricAlg = value
	case "msPKI-Symmetric-Algorithm":
		t.SymmetricAlg = value
	case "msPKI-Hash-Algorithm":
		t.HashAlg = value
	case "msPKI-Key-Security-Descriptor":
		t.KeySecurity = value
	case "msPKI-Symmetric-Key-Length":
		t.SymmetricKeyLength = int(number())
	case "msPKI-Key-Usage":
		t.CNGKeyUsage = number()
	default:
		r.fail("msPKI-RA-Application-Policies", "unknown property %q", name)
	}
}

// IsOID tells whether s is a dotted object identifier that a template can hold.
func IsOID(s string) bool { return isOID(s) }

// isOID tells whether s is a dotted object identifier whose arcs fit 32 bits, as XCEP clients require.
func isOID(s string) bool {
	arcs := strings.Split(s, ".")
	if len(arcs) < 2 || len(s) > 256 {
		return false
	}
	for i, arc := range arcs {
		n, err := strconv.ParseUint(arc, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != arc || i == 0 && n > 2 || i == 1 && arcs[0] != "2" && n > 39 {
			return false
		}
	}
	return true
}
