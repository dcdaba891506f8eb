package manifest

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
)

// flagsCodec is for a flag attribute ([MS-CRTD] 2.4, 2.26 to 2.28) with the names of templates.AllFlags. A field of several bits is
// its name and its value, "minimum CA version 5"; a bit without a name is hexadecimal. An empty list is 0.
func flagsCodec(attribute string) codec {
	return codec{
		read: func(values [][]byte) any {
			s, _ := single(values)
			v, err := strconv.ParseInt(s, 10, 32)
			if err != nil {
				return nil
			}
			return flagNames(attribute, uint32(v))
		},
		write: func(n node) ([][]byte, error) {
			items, err := n.list()
			if err != nil {
				return nil, err
			}
			var v uint32
			for _, item := range items {
				bit, err := flagBits(attribute, item)
				if err != nil {
					return nil, err
				}
				if v&bit != 0 {
					return nil, item.fail("%q: another line has set a bit of it", item.text)
				}
				v |= bit
			}
			return one(strconv.FormatInt(int64(int32(v)), 10)), nil
		},
	}
}

func flagNames(attribute string, v uint32) []string {
	out := []string{}
	for _, f := range templates.AllFlags() {
		if f.Attribute != attribute || v&f.Bit == 0 {
			continue
		}
		name := f.Name
		if bits.OnesCount32(f.Bit) > 1 {
			name = fmt.Sprintf("%s %d", f.Name, v&f.Bit>>bits.TrailingZeros32(f.Bit))
		}
		out = append(out, name)
		v &^= f.Bit
	}
	for ; v != 0; v &= v - 1 {
		out = append(out, fmt.Sprintf("0x%08x", v&-v))
	}
	return out
}

func flagBits(attribute string, item node) (uint32, error) {
	var names []string
	for _, f := range templates.AllFlags() {
		if f.Attribute != attribute {
			continue
		}
		names = append(names, f.Name)
		if bits.OnesCount32(f.Bit) == 1 {
			if f.Name == item.text {
				return f.Bit, nil
			}
			continue
		}
		if value, ok := strings.CutPrefix(item.text, f.Name+" "); ok {
			n, err := strconv.ParseUint(value, 10, bits.OnesCount32(f.Bit))
			if err != nil {
				return 0, item.fail("%q: %q is not a number below %d", f.Name, value, 1<<bits.OnesCount32(f.Bit))
			}
			return uint32(n) << bits.TrailingZeros32(f.Bit), nil
		}
	}
	if hex, ok := strings.CutPrefix(item.text, "0x"); ok {
		if n, err := strconv.ParseUint(hex, 16, 32); err == nil {
			return uint32(n), nil
		}
	}
	return 0, item.fail("%s has no flag %q: use %s, or hexadecimal for a bit without a name", attribute, item.text, strings.Join(names, ", "))
}
