package kerberos

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Buffers of the PAC that are read; the others do not decide who the caller is ([MS-PAC] 2.4).
const (
	pacLogonInfo       = 1
	pacServerSignature = 6
	pacKDCSignature    = 7
	pacClientInfo      = 10
)

// maxPACBuffers is far above the dozen kinds that exist.
const maxPACBuffers = 64

// groupEnabled marks a group that counts when access is decided (SE_GROUP_ENABLED, [MS-PAC] 2.2.1).
const groupEnabled = 0x4

const secondsFrom1601To1970 = 11_644_473_600

// callerOf reads the caller out of an opened ticket; key is the service's key, which signs the PAC.
func callerOf(part messages.EncTicketPart, key types.EncryptionKey) (templates.Caller, error) {
	name := part.CName.PrincipalNameString() + "@" + part.CRealm
	info, err := verifiedLogonInfo(part, key)
	if err != nil {
		return templates.Caller{}, noUsablePAC(name, err)
	}
	caller := templates.Caller{Principal: name, Realm: part.CRealm}
	if caller.SID, caller.Groups, err = sidsOf(info); err != nil {
		return templates.Caller{}, noUsablePAC(name, err)
	}
	account := info.effectiveName
	if account == "" {
		account = part.CName.PrincipalNameString()
	}
	caller.Machine = strings.HasSuffix(account, "$")
	return caller.WithToken(), nil
}

// noUsablePAC is the refusal of a proven client about whom the ticket does not say enough.
func noUsablePAC(name string, cause error) error {
	return hresult.New(hresult.AccessDenied, "the ticket has no usable PAC: %s, so the groups of %s are unknown", cause, name).
		WithFix("the ticket must come from an Active Directory domain controller; check that the flag NO_AUTH_DATA_REQUIRED (0x2000000) of userAccountControl is not set on the gateway's account")
}

// verifiedLogonInfo finds the PAC in the ticket, verifies it and decodes its logon information.
func verifiedLogonInfo(part messages.EncTicketPart, key types.EncryptionKey) (*logonInfo, error) {
	raw, err := findPAC(part.AuthorizationData)
	if err != nil {
		return nil, err
	}
	buffers, err := pacBuffers(raw)
	if err != nil {
		return nil, err
	}
	if err := verifyPAC(raw, buffers, key); err != nil {
		return nil, err
	}
	if err := checkClientInfo(raw, buffers, part); err != nil {
		return nil, err
	}
	b, ok := buffers[pacLogonInfo]
	if !ok {
		return nil, fmt.Errorf("it has no logon information (a KDC other than Active Directory?)")
	}
	info, err := parseLogonInfo(b.of(raw))
	if err != nil {
		return nil, fmt.Errorf("its logon information cannot be decoded: %w", err)
	}
	return info, nil
}

// findPAC looks for the PAC where [MS-KILE] 3.3.5.6.4 puts it: AD-WIN2K-PAC inside AD-IF-RELEVANT.
func findPAC(data types.AuthorizationData) ([]byte, error) {
	for _, ad := range data {
		if ad.ADType != adtype.ADIfRelevant {
			continue
		}
		var inner types.AuthorizationData
		if err := inner.Unmarshal(ad.ADData); err != nil {
			return nil, fmt.Errorf("its authorization data is malformed: %w", err)
		}
		for _, e := range inner {
			if e.ADType == adtype.ADWin2KPAC {
				return e.ADData, nil
			}
		}
	}
	return nil, fmt.Errorf("there is none in it")
}

// span is the place of one buffer in the PAC.
type span struct{ offset, size int }

func (s span) of(raw []byte) []byte { return raw[s.offset : s.offset+s.size] }

// pacBuffers reads the PACTYPE header ([MS-PAC] 2.3). Of several buffers of one kind the first counts (2.4).
func pacBuffers(raw []byte) (map[uint32]span, error) {
	if len(raw) < 8 {
		return nil, fmt.Errorf("it is cut off")
	}
	n := binary.LittleEndian.Uint32(raw)
	if v := binary.LittleEndian.Uint32(raw[4:]); v != 0 {
		return nil, fmt.Errorf("it has version %d", v)
	}
	if n > maxPACBuffers || len(raw) < 8+16*int(n) {
		return nil, fmt.Errorf("it claims %d buffers", n)
	}
	buffers := make(map[uint32]span, n)
	for i := range int(n) {
		h := raw[8+16*i:]
		kind, size, offset := binary.LittleEndian.Uint32(h), binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint64(h[8:])
		if offset > uint64(len(raw)) || uint64(size) > uint64(len(raw))-offset {
			return nil, fmt.Errorf("buffer %d of kind %d is outside of it", i, kind)
		}
		if _, ok := buffers[kind]; !ok {
			buffers[kind] = span{int(offset), int(size)}
		}
	}
	return buffers, nil
}

// verifyPAC checks the server signature: a checksum over the PAC with both signatures zeroed ([MS-PAC] 2.8.1), by the
// service's key. The KDC's signature is for the KDC alone.
func verifyPAC(raw []byte, buffers map[uint32]span, key types.EncryptionKey) error {
	server, ok := buffers[pacServerSignature]
	if !ok {
		return fmt.Errorf("it has no server signature")
	}
	kdc, ok := buffers[pacKDCSignature]
	if !ok {
		return fmt.Errorf("it has no KDC signature")
	}
	zeroed := bytes.Clone(raw)
	sumType, sum, err := signature(server.of(raw))
	if err != nil {
		return fmt.Errorf("its server signature: %w", err)
	}
	_, kdcSum, err := signature(kdc.of(raw))
	if err != nil {
		return fmt.Errorf("its KDC signature: %w", err)
	}
	clear(zeroed[server.offset+4 : server.offset+4+len(sum)])
	clear(zeroed[kdc.offset+4 : kdc.offset+4+len(kdcSum)])
	etype, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		return fmt.Errorf("its server signature: %w", err)
	}
	if etype.GetHashID() != sumType {
		return fmt.Errorf("its server signature has checksum type %d, which does not fit the service's key (%s)", sumType, etypeName(key.KeyType))
	}
	if !etype.VerifyChecksum(key.KeyValue, zeroed, sum, keyusage.KERB_NON_KERB_CKSUM_SALT) {
		return fmt.Errorf("its server signature is wrong")
	}
	return nil
}

// signature splits PAC_SIGNATURE_DATA ([MS-PAC] 2.8) into checksum type and checksum.
func signature(b []byte) (int32, []byte, error) {
	if len(b) < 4 {
		return 0, nil, fmt.Errorf("cut off")
	}
	kind := int32(binary.LittleEndian.Uint32(b))
	size := 0
	switch kind {
	case chksumtype.HMAC_SHA1_96_AES128, chksumtype.HMAC_SHA1_96_AES256:
		size = 12
	case chksumtype.HMAC_SHA256_128_AES128, chksumtype.KERB_CHECKSUM_HMAC_MD5:
		size = 16
	case chksumtype.HMAC_SHA384_192_AES256:
		size = 24
	default:
		return 0, nil, fmt.Errorf("unknown checksum type %d", kind)
	}
	if len(b) < 4+size {
		return 0, nil, fmt.Errorf("cut off")
	}
	return kind, b[4 : 4+size], nil
}

// checkClientInfo ties the PAC to this ticket: PAC_CLIENT_INFO repeats the client's name and the time of its logon
// ([MS-PAC] 2.7).
func checkClientInfo(raw []byte, buffers map[uint32]span, part messages.EncTicketPart) error {
	s, ok := buffers[pacClientInfo]
	if !ok {
		return fmt.Errorf("it has no client information")
	}
	b := s.of(raw)
	if len(b) < 10 || len(b) < 10+int(binary.LittleEndian.Uint16(b[8:])) {
		return fmt.Errorf("its client information is cut off")
	}
	// FILETIME counts 100 ns from 1601 on ([MS-DTYP] 2.3.3).
	if logon := int64(binary.LittleEndian.Uint64(b)/1e7) - secondsFrom1601To1970; logon != part.AuthTime.Unix() {
		return fmt.Errorf("it is of another logon than the ticket")
	}
	units := make([]uint16, binary.LittleEndian.Uint16(b[8:])/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[10+2*i:])
	}
	if name := string(utf16.Decode(units)); !strings.EqualFold(name, part.CName.PrincipalNameString()) {
		return fmt.Errorf("it is of another client (%q) than the ticket", name)
	}
	return nil
}

// sidsOf lists the account's SID and those of its groups, from KERB_VALIDATION_INFO ([MS-PAC] 2.5), with the
// well-known ones that no ticket lists.
func sidsOf(info *logonInfo) (security.SID, []security.SID, error) {
	if info.domain == "" {
		return "", nil, errors.New("the account's domain: SID is absent")
	}
	groups := security.NewToken(security.Everyone, security.AuthenticatedUsers, security.Network,
		security.ThisOrganization, security.BuiltinUsers)
	if info.primaryGroupID != 0 {
		groups[withRID(info.domain, info.primaryGroupID)] = struct{}{}
	}
	add := func(domain security.SID, list []membership) {
		for _, g := range list {
			if g.attributes&groupEnabled != 0 {
				groups[withRID(domain, g.rid)] = struct{}{}
			}
		}
	}
	add(info.domain, info.groups)
	for i, s := range info.extra {
		if s.sid == "" {
			return "", nil, fmt.Errorf("extra SID %d: SID is absent", i)
		}
		if s.attributes&groupEnabled != 0 {
			groups[s.sid] = struct{}{}
		}
	}
	if len(info.resource) > 0 {
		if info.resourceDomain == "" {
			return "", nil, errors.New("the resource groups' domain: SID is absent")
		}
		add(info.resourceDomain, info.resource)
	}
	user := withRID(info.domain, info.userID)
	if info.userID == 0 { // the account's SID is then the first extra SID
		if len(info.extra) == 0 {
			return "", nil, errors.New("it does not name the account")
		}
		user = info.extra[0].sid
	}
	return user, groups.Sorted(), nil
}

func withRID(domain security.SID, rid uint32) security.SID {
	return security.SID(fmt.Sprintf("%s-%d", domain, rid))
}
