package dcom

import (
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// ComVersion of this server: 5.7 ([MS-DCOM] 2.2.11).
const (
	comMajor = 5
	comMinor = 7
)

// The interfaces of DCOM itself ([MS-DCOM] 1.9). Those that objects have are of version 0.0.
var (
	iidUnknown      = standard(0x00000000)
	iidClassFactory = standard(0x00000001)
	iidRemUnknown   = standard(0x00000131)
	iidRemUnknown2  = standard(0x00000143)
	activatorSyntax = pdu.Syntax{UUID: standard(0x000001a0)}
	exporterSyntax  = pdu.Syntax{UUID: pdu.MustUUID("99fcfec4-5260-101b-bbcb-00aa0021347a")}

	iidPropertiesIn    = standard(0x000001a2)
	iidPropertiesOut   = standard(0x000001a3)
	clsidPropertiesIn  = standard(0x00000338)
	clsidPropertiesOut = standard(0x00000339)
	clsidInstantiation = standard(0x000001ab)
)

// standard is one of the UUIDs that COM has for itself.
func standard(n uint32) pdu.UUID {
	return pdu.UUID{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 8: 0xc0, 15: 0x46} //nolint:gosec // octets of it
}

// HRESULTs of COM ([MS-ERREF] 2.1.1).
const (
	codeNoInterface     hresult.Code = 0x80004002
	codeOutOfMemory     hresult.Code = 0x8007000E
	codeClassNotReg     hresult.Code = 0x80040154
	codeNoAggregation   hresult.Code = 0x80040110
	codeObjectNotReg    hresult.Code = 0x800401FB
	codeDisconnected    hresult.Code = 0x80010108
	codeVersionMismatch hresult.Code = 0x80010110
	codeInvalidHeader   hresult.Code = 0x80010111
	codeInvalidExtent   hresult.Code = 0x80010112
	codeInvalidObject   hresult.Code = 0x80010114
	codeInvalidObjref   hresult.Code = 0x8001011D
)

var codeNames = map[hresult.Code]string{
	codeNoInterface: "E_NOINTERFACE", codeOutOfMemory: "E_OUTOFMEMORY", codeClassNotReg: "REGDB_E_CLASSNOTREG", codeNoAggregation: "CLASS_E_NOAGGREGATION",
	codeObjectNotReg: "CO_E_OBJNOTREG", codeDisconnected: "RPC_E_DISCONNECTED", codeVersionMismatch: "RPC_E_VERSION_MISMATCH",
	codeInvalidHeader: "RPC_E_INVALID_HEADER", codeInvalidExtent: "RPC_E_INVALID_EXTENSION", codeInvalidObject: "RPC_E_INVALID_OBJECT",
	codeInvalidObjref: "RPC_E_INVALID_OBJREF",
}

// codeName is the symbolic name, for logs and metrics.
func codeName(c hresult.Code) string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return c.Name()
}

// Statuses of the object resolver: Win32 errors ([MS-ERREF] 2.2).
const (
	statusOutOfMemory = 14    // ERROR_OUTOFMEMORY
	statusInvalidOXID = 0x776 // OR_INVALID_OXID
	statusInvalidSet  = 0x778 // OR_INVALID_SET
)

var statusNames = map[uint32]string{statusOutOfMemory: "ERROR_OUTOFMEMORY", statusInvalidOXID: "OR_INVALID_OXID", statusInvalidSet: "OR_INVALID_SET"}
