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
	zero           bool   // an empty list is 0, and does not clear the attribute
}

// fields are the readable keys, in the order written.
func fields() []field {
	return []field{
		{key: "display_name", attribute: attrDisplay, codec: textCodec, need: true},
		{key: "oid", attribute: attrOID, codec: oidCodec},
		{key: "schema", attribute: attrSchema, codec: numberCodec, need: true},
		{key: "flags", attribute: "flags", codec: flagsCodec("flags"), need: true, zero: true},
		{key: "enrollment_flags", attribute: "mspki-enrollment-flag", codec: flagsCodec("msPKI-Enrollment-Flag"), need: true, zero: true},
		{key: "private_key_flags", attribute: "mspki-private-key-flag", codec: flagsCodec("msPKI-Private-Key-Flag"), need: true, zero: true},
		{key: "name_flags", attribute: "mspki-certificate-name-flag", codec: flagsCodec("msPKI-Certificate-Name-Flag"), need: true, zero: true},
		{key: "validity", attribute: "pkiexpirationperiod", codec: periodCodec, need: true},
		{key: "renewal", attribute: "pkioverlapperiod", codec: periodCodec, need: true},
		{key: "key_spec", attribute: "pkidefaultkeyspec", codec: keySpecCodec, initial: "1"},
		{key: "key_usage", attribute: "pkikeyusage", codec: keyUsageCodec, need: true},
		{key: "minimum_key_size", attribute: "mspki-minimal-key-size", codec: numberCodec, initial: "2048"},
		{key: "providers", attribute: "pkidefaultcsps", codec: providersCodec},
		{key: "max_issuing_depth", attribute: "pkimaxissuingdepth", codec: numberCodec, initial: "0"},
		{key: "critical_extensions", attribute: "pkicriticalextensions", codec: oidsCodec, initial: "2.5.29.15"},
		{key: "extended_key_usage", attribute: "pkiextendedkeyusage", codec: oidsCodec, need: true},
		{key: "application_policies", attribute: "mspki-certificate-application-policy", codec: oidsCodec},
		{key: "issuance_policies", attribute: "mspki-certificate-policy", codec: oidsCodec},
		{key: "ra_signatures", attribute: "mspki-ra-signature", codec: numberCodec, initial: "0"},
		{key: "ra_policies", attribute: "mspki-ra-policies", codec: oidsCodec},
		{key: "ra_application_policies", attribute: attrRAProperties, codec: oidsCodec},
		{key: "ra_properties", attribute: attrRAProperties, codec: raPropertiesCodec},
		{key: "supersedes", attribute: "mspki-supersede-templates", codec: textsCodec},
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
