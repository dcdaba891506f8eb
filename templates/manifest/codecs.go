package manifest

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/enrollgate/enrollgate/templates"
)

func one(text string) [][]byte { return [][]byte{[]byte(text)} }

// single returns the text of an attribute that has one value.
func single(values [][]byte) (string, bool) {
	if len(values) != 1 {
		return "", false
	}
	return string(values[0]), true
}

var textCodec = codec{
	read: func(values [][]byte) any {
		if s, ok := single(values); ok && s != "" {
			return s
		}
		return nil
	},
	write: func(n node) ([][]byte, error) {
		s, err := n.scalar()
		return one(s), err
	},
}

var oidCodec = codec{read: textCodec.read, write: func(n node) ([][]byte, error) {
	s, err := n.scalar()
	if err == nil && !templates.IsOID(s) {
		err = n.fail("%q is not an object identifier", s)
	}
	return one(s), err
}}

// textsCodec is for values in no order; they are sorted, so that the same template is always the same text.
var textsCodec = codec{
	read: func(values [][]byte) any {
		var out []string
		for _, v := range values {
			if len(v) == 0 {
				return nil
			}
			out = append(out, string(v))
		}
		slices.Sort(out)
		return out
	},
	write: func(n node) (out [][]byte, err error) {
		items, err := n.list()
		for i, item := range items {
			if slices.ContainsFunc(items[:i], func(o node) bool { return o.text == item.text }) {
				return nil, item.fail("%q is in the list twice", item.text)
			}
			out = append(out, []byte(item.text))
		}
		return out, err
	},
}

var oidsCodec = codec{read: textsCodec.read, write: func(n node) ([][]byte, error) {
	items, err := n.list()
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if !templates.IsOID(item.text) {
			return nil, item.fail("%q is not an object identifier", item.text)
		}
	}
	return textsCodec.write(n)
}}

var numberCodec = codec{
	read: func(values [][]byte) any {
		s, _ := single(values)
		if n, err := strconv.ParseInt(s, 10, 32); err == nil {
			return int(n)
		}
		return nil
	},
	write: func(n node) ([][]byte, error) {
		s, err := n.scalar()
		if err != nil {
			return nil, err
		}
		v, err := strconv.ParseInt(s, 10, 32)
		if err != nil {
			return nil, n.fail("%q is not a whole number of 32 bits", s)
		}
		return one(strconv.FormatInt(v, 10)), nil
	},
}

const (
	specExchange  = "exchange"
	specSignature = "signature"
)

// keySpecCodec is pKIDefaultKeySpec ([MS-CRTD] 2.9): AT_KEYEXCHANGE or AT_SIGNATURE.
var keySpecCodec = codec{
	read: func(values [][]byte) any {
		switch s, _ := single(values); s {
		case "1":
			return specExchange
		case "2":
			return specSignature
		}
		return nil
	},
	write: func(n node) ([][]byte, error) {
		switch n.text {
		case specExchange:
			return one("1"), nil
		case specSignature:
			return one("2"), nil
		}
		return nil, n.fail("%q is not a key specification: use %s or %s", n.text, specExchange, specSignature)
	},
}

// providersCodec is for pKIDefaultCSPs ([MS-CRTD] 2.17), "1,Microsoft …", in the order of their numbers. The numbers stand in YAML
// only where they are not 1, 2, 3, ….
var providersCodec = codec{
	read: func(values [][]byte) any {
		out := make([]string, len(values))
		inOrder := slices.SortedStableFunc(slices.Values(values), func(a, b []byte) int { return rank(a) - rank(b) })
		counted := true
		for i, v := range inOrder {
			out[i] = string(v)
			counted = counted && strings.HasPrefix(out[i], strconv.Itoa(i+1)+",")
		}
		for i := range out {
			if _, name, _ := strings.Cut(out[i], ","); counted && name != "" && !isNumbered(name) {
				out[i] = name
			}
		}
		return out
	},
	write: func(n node) (out [][]byte, err error) {
		items, err := n.list()
		for i, item := range items {
			if item.text == "" {
				return nil, item.fail("a provider without a name")
			}
			if !isNumbered(item.text) {
				item.text = fmt.Sprintf("%d,%s", i+1, item.text)
			}
			out = append(out, []byte(item.text))
		}
		return out, err
	},
}

func isNumbered(provider string) bool {
	number, _, ok := strings.Cut(provider, ",")
	_, err := strconv.ParseUint(number, 10, 31)
	return ok && err == nil
}

func rank(provider []byte) int {
	number, _, _ := strings.Cut(string(provider), ",")
	if n, err := strconv.ParseUint(number, 10, 31); err == nil {
		return int(n)
	}
	return math.MaxInt32
}

const attrRAProperties = "mspki-ra-application-policies"

// raPropertiesCodec is the syntax of schema 3 and 4: name`type`value` for each property ([MS-CRTD] 2.23). In YAML a number is a
// DWORD, text is a PZPWSTR.
var raPropertiesCodec = codec{
	read: func(values [][]byte) any {
		s, _ := single(values)
		f := strings.Split(strings.TrimSuffix(s, "`"), "`")
		var out yaml.MapSlice
		for ; len(f) >= 3; f = f[3:] {
			item := yaml.MapItem{Key: f[0], Value: f[2]}
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && f[1] == "DWORD" {
				item.Value = int(n)
			}
			if f[0] == "" || slices.ContainsFunc(out, func(o yaml.MapItem) bool { return o.Key == f[0] }) {
				return nil
			}
			out = append(out, item)
		}
		if len(out) == 0 {
			return nil
		}
		return out
	},
	write: func(n node) ([][]byte, error) {
		if n.kind != mapping {
			return nil, n.fail("want properties, such as msPKI-Asymmetric-Algorithm: RSA")
		}
		var b strings.Builder
		for _, e := range n.entries {
			value, err := e.value.scalar()
			if err != nil {
				return nil, err
			}
			if strings.Contains(e.key+value, "`") {
				return nil, e.value.fail("a property has no backtick")
			}
			kind := "PZPWSTR"
			if e.value.number {
				v, err := strconv.ParseUint(value, 0, 32)
				if err != nil {
					return nil, e.value.fail("%q is not a whole number of 32 bits", value)
				}
				kind, value = "DWORD", strconv.FormatUint(v, 10)
			}
			fmt.Fprintf(&b, "%s`%s`%s`", e.key, kind, value)
		}
		return one(b.String()), nil
	},
}

const base64Prefix = "base64:"

// raw shows any values: as text, or in base64.
func raw(values [][]byte) []string {
	out := []string{}
	for _, v := range sorted(values) {
		if s := string(v); s != "" && plain(s) && !strings.HasPrefix(s, base64Prefix) {
			out = append(out, s)
		} else {
			out = append(out, base64Prefix+base64.StdEncoding.EncodeToString(v))
		}
	}
	return out
}

func writeRaw(n node) (out [][]byte, err error) {
	items, err := n.list()
	for _, item := range items {
		v := []byte(item.text)
		if encoded, ok := strings.CutPrefix(item.text, base64Prefix); ok {
			if v, err = base64.StdEncoding.DecodeString(encoded); err != nil {
				return nil, item.fail("%q is not base64", encoded)
			}
		}
		out = append(out, v)
	}
	return out, err
}

// usages are the names of RFC 5280 4.2.1.3 for the bits of pKIKeyUsage ([MS-CRTD] 2.10), the first octet in the high byte.
var usages = []struct {
	bit  uint16
	name string
}{
	{0x8000, "digitalSignature"}, {0x4000, "nonRepudiation"}, {0x2000, "keyEncipherment"}, {0x1000, "dataEncipherment"},
	{0x0800, "keyAgreement"}, {0x0400, "keyCertSign"}, {0x0200, "cRLSign"}, {0x0100, "encipherOnly"}, {0x0080, "decipherOnly"},
}

// oneOctet says that pKIKeyUsage lacks its second octet, as in some templates that Windows brings along.
const oneOctet = "one-octet"

var keyUsageCodec = codec{
	read: func(values [][]byte) any {
		s, _ := single(values)
		if len(s) == 0 || len(s) > 2 {
			return nil
		}
		v := binary.BigEndian.Uint16([]byte(s + "\x00")[:2])
		out := []string{}
		for _, u := range usages {
			if v&u.bit != 0 {
				out = append(out, u.name)
				v &^= u.bit
			}
		}
		if v != 0 || len(out) == 0 {
			out = append(out, fmt.Sprintf("0x%04x", v))
		}
		if len(s) == 1 {
			out = append(out, oneOctet)
		}
		return out
	},
	write: func(n node) ([][]byte, error) {
		items, err := n.list()
		var v uint16
		size := 2
		for _, item := range items {
			if item.text == oneOctet {
				size = 1
				continue
			}
			bit, err := usageOf(item)
			if err != nil {
				return nil, err
			}
			v |= bit
		}
		return [][]byte{binary.BigEndian.AppendUint16(nil, v)[:size]}, err
	},
}

func usageOf(item node) (uint16, error) {
	names := make([]string, len(usages))
	for i, u := range usages {
		if u.name == item.text {
			return u.bit, nil
		}
		names[i] = u.name
	}
	if hex, ok := strings.CutPrefix(item.text, "0x"); ok {
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil {
			return uint16(n), nil
		}
	}
	return 0, item.fail("unknown key usage %q: use %s", item.text, strings.Join(names, ", "))
}
