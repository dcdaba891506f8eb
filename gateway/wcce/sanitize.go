package wcce

import (
	"fmt"
	"strings"
	"unicode/utf16"
)

// disallowed are the characters that sanitized names do not have ([MS-WCCE] 3.1.1.4.1.1.2), beside control characters and
// what is not ASCII.
const disallowed = "!\"#%&'()*+,/:;<=>?[\\]^`{|}"

const (
	shortNameBase = 51 // UTF-16 units of a sanitized name that a short one keeps
	escapeLength  = 5  // "!0023"
)

// SanitizedName is the name of a CA without the characters that the names of files and objects do not have ([MS-WCCE] 3.1.1.4.1.1):
// they are written as ! and four hexadecimal digits.
func SanitizedName(name string) string {
	var b strings.Builder
	for _, unit := range utf16.Encode([]rune(name)) {
		if unit < 0x20 || unit >= 0x7F || strings.ContainsRune(disallowed, rune(unit)) {
			fmt.Fprintf(&b, "!%04x", unit)
		} else {
			b.WriteByte(byte(unit))
		}
	}
	return b.String()
}

// SanitizedShortName is how the directory calls the objects of a CA ([MS-WCCE] 3.1.1.4.1.1): its sanitized name, of which what is longer
// than 51 characters ends in a hash of the rest.
func SanitizedShortName(name string) string {
	full := SanitizedName(name)
	if len(full) <= shortNameBase {
		return full
	}
	base := full[:shortNameBase]
	if i := strings.LastIndexByte(base, '!'); i >= 0 && len(base)-i < escapeLength {
		base = base[:i]
	}
	var hash uint16 // [MS-WCCE] 3.1.1.4.1.1.1
	for _, c := range []byte(full[len(base):]) {
		hash = hash<<1 | hash>>15
		hash += uint16(c)
	}
	return fmt.Sprintf("%s-%05d", base, hash)
}
