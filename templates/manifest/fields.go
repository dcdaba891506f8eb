package manifest

import (
	"bytes"
	"slices"

	"github.com/goccy/go-yaml"
)

// Keys that are not a field of the table below.
const (
	keyTemplate   = "template"
	keyVersion    = "version"
	keyAttributes = "attributes"
	keyOwner      = "owner"
	keyGroup      = "group"
	keyInherit    = "acl_inherits"
	keyACL        = "acl"
	keyOffered    = "offered_by"
)

// codec turns the values of an attribute into what stands in YAML, and back. read may return anything that nodeFor takes,
// or nil for values that it has no words for; what write does not turn into the same values counts as such, too.
type codec struct {
	read  func(values [][]byte) any
	write func(n node) ([][]byte, error)
}

// field is one key and the attribute behind it.
type field struct {
	key, attribute string
	codec          codec
	need           bool   // a template cannot be made without it
	initial        string // the value in a new template whose document does not have the key
	ordered        bool   // the order of the lines in YAML means something
}

// fields are the readable keys, in the order written.
func fields() []field {
	return []field{
		{key: "display_name", attribute: attrDisplay, codec: text, need: true},
		{key: "oid", attribute: attrOID, codec: oid},
		{key: "schema", attribute: attrSchema, codec: number, need: true},
		{key: "flags", attribute: "flags", codec: flags("flags"), need: true, ordered: true},
		{key: "enrollment_flags", attribute: "mspki-enrollment-flag", codec: flags("msPKI-Enrollment-Flag"), need: true, ordered: true},
		{key: "private_key_flags", attribute: "mspki-private-key-flag", codec: flags("msPKI-Private-Key-Flag"), need: true, ordered: true},
		{key: "name_flags", attribute: "mspki-certificate-name-flag", codec: flags("msPKI-Certificate-Name-Flag"), need: true, ordered: true},
		{key: "validity", attribute: "pkiexpirationperiod", codec: period, need: true},
		{key: "renewal", attribute: "pkioverlapperiod", codec: period, need: true},
		{key: "key_spec", attribute: "pkidefaultkeyspec", codec: keySpec, initial: "1"},
		{key: "key_usage", attribute: "pkikeyusage", codec: keyUsage, need: true, ordered: true},
		{key: "minimum_key_size", attribute: "mspki-minimal-key-size", codec: number, initial: "2048"},
		{key: "providers", attribute: "pkidefaultcsps", codec: providers, ordered: true},
		{key: "max_issuing_depth", attribute: "pkimaxissuingdepth", codec: number, initial: "0"},
		{key: "critical_extensions", attribute: "pkicriticalextensions", codec: oids, initial: "2.5.29.15"},
		{key: "extended_key_usage", attribute: "pkiextendedkeyusage", codec: oids, need: true},
		{key: "application_policies", attribute: "mspki-certificate-application-policy", codec: oids},
		{key: "issuance_policies", attribute: "mspki-certificate-policy", codec: oids},
		{key: "ra_signatures", attribute: "mspki-ra-signature", codec: number, initial: "0"},
		{key: "ra_policies", attribute: "mspki-ra-policies", codec: oids},
		{key: "ra_application_policies", attribute: attrRAProperties, codec: oids},
		{key: "ra_properties", attribute: attrRAProperties, codec: raProperties, ordered: true},
		{key: "supersedes", attribute: "mspki-supersede-templates", codec: texts},
	}
}

// readable returns the field that shows these values of an attribute without loss, and what stands in YAML.
func readable(attribute string, values [][]byte) (*field, any) {
	for _, f := range fields() {
		if f.attribute != attribute || len(values) == 0 {
			continue
		}
		v := f.codec.read(values)
		if v == nil || !writable(v) {
			continue
		}
		if again, err := f.codec.write(nodeFor(v)); err == nil && sameValues(again, values) {
			return &f, v
		}
	}
	return nil, nil
}

// writable tells whether all text in a value is fit for YAML.
func writable(v any) bool {
	switch v := v.(type) {
	case string:
		return plain(v)
	case []string:
		return !slices.ContainsFunc(v, func(s string) bool { return !plain(s) })
	case yaml.MapSlice:
		return !slices.ContainsFunc(v, func(i yaml.MapItem) bool { return !plain(i.Key.(string)) || !writable(i.Value) })
	}
	return true
}

// sameValues compares values as the directory does: without order.
func sameValues(a, b [][]byte) bool {
	return slices.EqualFunc(sorted(a), sorted(b), bytes.Equal)
}

func sorted(values [][]byte) [][]byte {
	out := slices.Clone(values)
	slices.SortFunc(out, bytes.Compare)
	return out
}
