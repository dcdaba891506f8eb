package dcom

import (
	"encoding/binary"
	"net"
	"slices"
	"strconv"
	"unicode/utf16"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"
	"github.com/oiweiwei/go-msrpc/msrpc/dtyp"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// towerTCP is the protocol sequence ncacn_ip_tcp in a STRINGBINDING ([MS-DCOM] 2.2.19.3).
const towerTCP = 7

// bindings is a DUALSTRINGARRAY ([MS-DCOM] 2.2.19): names at which the server is reached over TCP, with a port if it is not 0, and the security
// providers that it takes, with the principal for each. NTLM is not among them.
func bindings(names []string, port uint16, principal string) *msdcom.DualStringArray {
	var a []uint16
	text := func(s string) { a = append(append(a, utf16.Encode([]rune(s))...), 0) }
	for _, name := range names {
		if port != 0 {
			name += "[" + strconv.Itoa(int(port)) + "]"
		}
		a = append(a, towerTCP)
		text(name)
	}
	a = append(a, 0)
	security := len(a)
	for _, provider := range []pdu.AuthType{pdu.AuthNegotiate, pdu.AuthKerberos} {
		a = append(a, uint16(provider), 0xffff) // COM_C_AUTHZ_NONE
		text(principal)
	}
	a = append(a, 0)
	return &msdcom.DualStringArray{EntriesLength: uint16(len(a)), SecurityOffset: uint16(security), StringArray: a} //nolint:gosec // a few names
}

// exporter is where the objects are: at the names, and last at the address that the client has reached, as those who know no more of this
// machine look for it. The security bindings say whose ticket it takes at any of them. The resolver's bindings have no address: for pings
// clients ask for a ticket of RPCSS at what is written there, which there is for names only.
func (x *Exporter) exporter(call *server.Call) *msdcom.DualStringArray {
	names := x.opts.Names
	if a, ok := call.Local.(*net.TCPAddr); ok && a.IP.To4() != nil {
		if own := x.opts.Address; len(own) == 0 || own.IsUnspecified() || own.Equal(a.IP) {
			names = append(slices.Clip(names), a.IP.String())
		}
	}
	return bindings(names, x.opts.Port, "host/"+x.opts.Names[0])
}

// reference is STDOBJREF ([MS-DCOM] 2.2.18.2).
type reference struct {
	references uint32
	oid        uint64
	ipid       pdu.UUID
}

func (x *Exporter) standard(ref reference) *msdcom.StdObjectReference {
	return &msdcom.StdObjectReference{PublicReferencesCount: ref.references, OXID: x.oxid, OID: ref.oid, IPID: (*msdcom.IPID)(guid(ref.ipid))}
}

// objref is OBJREF_STANDARD ([MS-DCOM] 2.2.18.4).
func (x *Exporter) objref(iid pdu.UUID, ref reference) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, objrefSignature), objrefStandard)
	b = append(b, iid[:]...)
	b = le.AppendUint32(le.AppendUint32(b, 0), ref.references)
	b = le.AppendUint64(le.AppendUint64(b, x.oxid), ref.oid)
	b = append(b, ref.ipid[:]...)
	b = le.AppendUint16(le.AppendUint16(b, x.resolver.EntriesLength), x.resolver.SecurityOffset)
	for _, u := range x.resolver.StringArray {
		b = le.AppendUint16(b, u)
	}
	return b
}

// customObjref is OBJREF_CUSTOM with activation properties that go out ([MS-DCOM] 2.2.18.6).
func customObjref(blob []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, objrefSignature), objrefCustom)
	b = append(append(b, iidPropertiesOut[:]...), clsidPropertiesOut[:]...)
	b = le.AppendUint32(le.AppendUint32(b, 0), uint32(len(blob))+8) //nolint:gosec // made here
	return append(b, blob...)
}

func guid(u pdu.UUID) *dtyp.GUID {
	le := binary.LittleEndian
	return &dtyp.GUID{Data1: le.Uint32(u[:]), Data2: le.Uint16(u[4:]), Data3: le.Uint16(u[6:]), Data4: append([]byte(nil), u[8:]...)}
}
