// Package security has the Windows security types that decide who may enroll: security identifiers, GUIDs and
// security descriptors ([MS-DTYP] 2.4). It is pure: bytes in, values out, and every parser is strict.
package security

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// SID is a security identifier in its canonical text form, "S-1-5-21-…" ([MS-DTYP] 2.4.2.1). Values that come from
// ParseSID or ParseSIDText are canonical, so == compares identity. The zero value is no SID.
type SID string

// Well-known SIDs that a ticket does not list, but that every token holds ([MS-DTYP] 2.4.2.4).
const (
	Everyone           SID = "S-1-1-0"
	AuthenticatedUsers SID = "S-1-5-11"
	Network            SID = "S-1-5-2"
	ThisOrganization   SID = "S-1-5-15"
	BuiltinUsers       SID = "S-1-5-32-545"
)

// maxSubAuthorities is the limit of the binary form ([MS-DTYP] 2.4.2.2).
const maxSubAuthorities = 15

// ParseSID reads the binary form. The input must hold exactly one SID.
func ParseSID(b []byte) (SID, error) {
	sid, rest, err := readSID(b)
	if err != nil {
		return "", err
	}
	if len(rest) != 0 {
		return "", fmt.Errorf("SID: %d octets after the end", len(rest))
	}
	return sid, nil
}

// readSID reads one SID from the front of b and returns what follows it.
func readSID(b []byte) (SID, []byte, error) {
	if len(b) < 8 {
		return "", nil, fmt.Errorf("SID: %d octets, need at least 8", len(b))
	}
	if b[0] != 1 {
		return "", nil, fmt.Errorf("SID: revision %d, want 1", b[0])
	}
	n := int(b[1])
	if n > maxSubAuthorities {
		return "", nil, fmt.Errorf("SID: %d sub-authorities, at most %d allowed", n, maxSubAuthorities)
	}
	if len(b) < 8+4*n {
		return "", nil, fmt.Errorf("SID: %d octets, need %d for %d sub-authorities", len(b), 8+4*n, n)
	}
	authority := uint64(b[2])<<40 | uint64(b[3])<<32 | uint64(binary.BigEndian.Uint32(b[4:8]))
	var s strings.Builder
	s.WriteString("S-1-")
	if authority >= 1<<32 {
		fmt.Fprintf(&s, "0x%012x", authority)
	} else {
		s.WriteString(strconv.FormatUint(authority, 10))
	}
	for i := range n {
		s.WriteByte('-')
		s.WriteString(strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[8+4*i:])), 10))
	}
	return SID(s.String()), b[8+4*n:], nil
}

// ParseSIDText reads the text form and returns it in canonical spelling.
func ParseSIDText(s string) (SID, error) {
	parts := strings.Split(s, "-")
	if len(parts) < 3 || !strings.EqualFold(parts[0], "S") || parts[1] != "1" || len(parts)-3 > maxSubAuthorities {
		return "", fmt.Errorf("%q is not a SID", s)
	}
	base, digits := 10, parts[2]
	if strings.HasPrefix(digits, "0x") {
		base, digits = 16, digits[2:]
	}
	authority, err := strconv.ParseUint(digits, base, 48)
	if err != nil {
		return "", fmt.Errorf("%q is not a SID: identifier authority: %w", s, err)
	}
	b := []byte{1, byte(len(parts) - 3), byte(authority >> 40), byte(authority >> 32),
		byte(authority >> 24), byte(authority >> 16), byte(authority >> 8), byte(authority)}
	for _, p := range parts[3:] {
		v, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return "", fmt.Errorf("%q is not a SID: sub-authority: %w", s, err)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return ParseSID(b)
}

// Domain is the SID of the domain that an account's or group's SID is of; ok is false for those of no domain, such as
// S-1-5-32-544 ([MS-DTYP] 2.4.2.4).
func (s SID) Domain() (domain SID, ok bool) {
	i := strings.LastIndexByte(string(s), '-')
	if !strings.HasPrefix(string(s), "S-1-5-21-") || strings.Count(string(s), "-") != 7 {
		return "", false
	}
	return s[:i], true
}

// Bytes returns the binary form, or nil if s is not a SID.
func (s SID) Bytes() []byte {
	parts := strings.Split(string(s), "-")
	if len(parts) < 3 || len(parts)-3 > maxSubAuthorities {
		return nil
	}
	base, digits := 10, parts[2]
	if strings.HasPrefix(digits, "0x") {
		base, digits = 16, digits[2:]
	}
	authority, err := strconv.ParseUint(digits, base, 48)
	if err != nil {
		return nil
	}
	b := []byte{1, byte(len(parts) - 3)}
	b = append(b, binary.BigEndian.AppendUint64(nil, authority)[2:]...)
	for _, p := range parts[3:] {
		v, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return nil
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

// Token is the set of SIDs that a caller acts with: the account, its groups, the well-known ones.
type Token map[SID]struct{}

// NewToken returns the token of the given SIDs.
func NewToken(sids ...SID) Token {
	t := make(Token, len(sids))
	for _, s := range sids {
		t[s] = struct{}{}
	}
	return t
}

// Has tells whether the token holds sid.
func (t Token) Has(sid SID) bool { _, ok := t[sid]; return ok }

// Sorted returns the SIDs in text order.
func (t Token) Sorted() []SID {
	s := make([]SID, 0, len(t))
	for sid := range t {
		s = append(s, sid)
	}
	slices.Sort(s)
	return s
}

// GUID is a GUID in the octet order of Windows structures: the first three fields little-endian ([MS-DTYP] 2.3.4.2).
type GUID [16]byte

// ParseGUID reads "0e10c968-78fb-11d2-90d4-00c04f79dc55", with or without braces.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	t := strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}")
	b, err := hex.DecodeString(strings.ReplaceAll(t, "-", ""))
	if err != nil || len(b) != 16 || len(t) != 36 || t[8] != '-' || t[13] != '-' || t[18] != '-' || t[23] != '-' {
		return g, fmt.Errorf("%q is not a GUID", s)
	}
	g = GUID(b)
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g, nil
}

// String returns the usual text form, without braces.
func (g GUID) String() string {
	h := g
	slices.Reverse(h[0:4])
	slices.Reverse(h[4:6])
	slices.Reverse(h[6:8])
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// Extended rights of certificate templates and enrollment services ([MS-CRTD] 2.5).
var (
	RightEnroll     = mustGUID("0e10c968-78fb-11d2-90d4-00c04f79dc55")
	RightAutoEnroll = mustGUID("a05b8cc2-17bc-4802-a710-e7c15ab866a2")
)
