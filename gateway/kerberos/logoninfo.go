package kerberos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/templates/security"
)

// logonInfo is what is used of KERB_VALIDATION_INFO ([MS-PAC] 2.5). It is decoded here, with every count checked against
// the octets that are there: a general NDR decoder allocates what the counts say.
type logonInfo struct {
	effectiveName  string
	userID         uint32
	primaryGroupID uint32
	domain         security.SID // "" where absent
	groups         []membership // relative to domain
	extra          []sidAttributes
	resourceDomain security.SID
	resource       []membership // relative to resourceDomain
}

type membership struct{ rid, attributes uint32 }

type sidAttributes struct {
	sid        security.SID // "" where absent
	attributes uint32
}

// ndrReader reads NDR 2.0, little-endian ([C706] 14). The first error stays.
type ndrReader struct {
	all, rest []byte
	err       error
}

func (r *ndrReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.rest = nil
}

// take returns the next n octets; after an error, zeroes for the fixed sizes that the callers ask for.
func (r *ndrReader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.fail("it is cut off after %d octets", len(r.all))
		return make([]byte, min(max(n, 0), 64))
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *ndrReader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *ndrReader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

// align skips the padding before a 32-bit number.
func (r *ndrReader) align() {
	if n := (len(r.all) - len(r.rest)) % 4; n != 0 && r.err == nil {
		r.take(4 - n)
	}
}

// count checks that as many elements as claimed can be there.
func (r *ndrReader) count(n uint32, size int) int {
	if int64(n)*int64(size) > int64(len(r.rest)) {
		r.fail("it claims %d elements in %d octets", n, len(r.rest))
		return 0
	}
	return int(n)
}

// unicode is an RPC_UNICODE_STRING whose characters come later ([MS-DTYP] 2.3.10).
type unicode struct {
	length  int // characters
	present bool
}

func (r *ndrReader) unicodeHeader() unicode {
	length := r.u16()
	r.u16() // maximum length
	return unicode{int(length) / 2, r.u32() != 0}
}

func (r *ndrReader) unicodeText(u unicode) string {
	if !u.present || r.err != nil {
		return ""
	}
	r.align()
	maximum, offset, actual := r.u32(), r.u32(), r.u32()
	if offset != 0 || actual > maximum || int(actual) < u.length {
		r.fail("a string in it contradicts itself")
		return ""
	}
	n := r.count(actual, 2)
	units := make([]uint16, n)
	for i := range units {
		units[i] = r.u16()
	}
	return string(utf16.Decode(units[:min(u.length, n)]))
}

// sid reads an RPC_SID ([MS-DTYP] 2.4.2.3).
func (r *ndrReader) sid() security.SID {
	r.align()
	n := r.count(r.u32(), 4)
	b := r.take(8 + 4*n)
	if r.err != nil {
		return ""
	}
	sid, err := security.ParseSID(b)
	if err != nil {
		r.fail("%w", err)
	}
	return sid
}

func (r *ndrReader) memberships(want uint32) []membership {
	r.align()
	maximum := r.u32()
	if maximum != want {
		r.fail("it claims %d groups and has %d", want, maximum)
	}
	out := make([]membership, r.count(maximum, 8))
	for i := range out {
		out[i] = membership{r.u32(), r.u32()}
	}
	return out
}

// logonInfoHeader is the type serialization header ([MS-RPCE] 2.2.6) and the pointer to the structure.
const logonInfoHeader = 8 + 8 + 4

// parseLogonInfo decodes the buffer of kind pacLogonInfo.
func parseLogonInfo(b []byte) (*logonInfo, error) {
	r := &ndrReader{all: b, rest: b}
	if len(b) < logonInfoHeader || b[0] != 1 || b[1] != 0x10 || binary.LittleEndian.Uint16(b[2:]) != 8 {
		return nil, errors.New("it is not NDR, version 1, little-endian")
	}
	r.take(logonInfoHeader - 4)
	if r.u32() == 0 {
		return nil, errors.New("it is empty")
	}
	info := &logonInfo{}
	r.take(6 * 8) // times
	var names [6]unicode
	for i := range names {
		names[i] = r.unicodeHeader()
	}
	r.take(2 * 2) // logon and bad password counts
	info.userID, info.primaryGroupID = r.u32(), r.u32()
	groupCount, hasGroups := r.u32(), r.u32() != 0
	r.take(4 + 16) // user flags, session key
	server, domainName := r.unicodeHeader(), r.unicodeHeader()
	hasDomain := r.u32() != 0
	r.take(2*4 + 4 + 4 + 8 + 8 + 4 + 4) // reserved, account control, status, times of log-ons, counts
	sidCount, hasSIDs := r.u32(), r.u32() != 0
	hasResourceDomain := r.u32() != 0
	resourceCount, hasResource := r.u32(), r.u32() != 0

	// What the pointers point to, in the order of the pointers.
	for i, n := range names {
		if text := r.unicodeText(n); i == 0 {
			info.effectiveName = strings.TrimRight(text, "\x00")
		}
	}
	if hasGroups {
		info.groups = r.memberships(groupCount)
	}
	r.unicodeText(server)
	r.unicodeText(domainName)
	if hasDomain {
		info.domain = r.sid()
	}
	if hasSIDs {
		info.extra = r.extraSIDs(sidCount)
	}
	if hasResourceDomain {
		info.resourceDomain = r.sid()
	}
	if hasResource {
		info.resource = r.memberships(resourceCount)
	}
	return info, r.err
}

// extraSIDs reads KERB_SID_AND_ATTRIBUTES elements, then the SIDs that they point to.
func (r *ndrReader) extraSIDs(want uint32) []sidAttributes {
	r.align()
	maximum := r.u32()
	if maximum != want {
		r.fail("it claims %d extra SIDs and has %d", want, maximum)
	}
	out := make([]sidAttributes, r.count(maximum, 8))
	present := make([]bool, len(out))
	for i := range out {
		present[i] = r.u32() != 0
		out[i].attributes = r.u32()
	}
	for i := range out {
		if present[i] {
			out[i].sid = r.sid()
		}
	}
	return out
}
