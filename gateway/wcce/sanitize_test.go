package wcce_test

import (
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// The first name is the example of [MS-WCCE] 1.3.2.5, as far as that replaces what its own table of characters says: it
// writes $ for %. The hashes are worked out by hand from 3.1.1.4.1.1.1.
func TestCommonNamesAreSanitized(t *testing.T) {
	for name, want := range map[string]string{
		"LongCAName(WithSpeci@#$%^Characters":  "LongCAName!0028WithSpeci@!0023$!0025!005eCharacters",
		"LAB Issuing CA":                       "LAB Issuing CA",
		"Zürich":                               "Z!00fcrich",
		"a,b+c":                                "a!002cb!002bc",
		"😀":                                    "!d83d!de00", // a surrogate pair is two characters
		"\x7f\x01":                             "!007f!0001",
		strings.Repeat("a", 51):                strings.Repeat("a", 51),
		strings.Repeat("a", 52):                strings.Repeat("a", 51) + "-00097",
		strings.Repeat("a", 53):                strings.Repeat("a", 51) + "-00291",                              // 97*2 + 97
		strings.Repeat("a", 48) + "#b":         strings.Repeat("a", 48) + "-" + hashOf("!0023b"),                // an escape that would be cut goes as a whole
		strings.Repeat("a", 46) + "#" + "zzzz": strings.Repeat("a", 46) + "!0023-" + hashOf("zzzz"),             // one that ends at the limit stays
		strings.Repeat("~", 80):                strings.Repeat("~", 51) + "-" + hashOf(strings.Repeat("~", 29)), // the sum wraps around
	} {
		if got := wcce.SanitizedShortName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		if got := wcce.SanitizedShortName(name); len(got) > 57 {
			t.Errorf("%q: %d characters", name, len(got))
		}
	}
}

// hashOf is the specification's formula, in arithmetic instead of shifts.
func hashOf(excess string) string {
	hash := 0
	for _, c := range []byte(excess) {
		low := 0
		if hash >= 0x8000 {
			low = 1
		}
		hash = (hash*2%0x10000 + low + int(c)) % 0x10000
	}
	digits := "00000"
	for i, b := 4, []byte(digits); i >= 0; i-- {
		b[i] = byte('0' + hash%10)
		hash /= 10
		digits = string(b)
	}
	return digits
}
