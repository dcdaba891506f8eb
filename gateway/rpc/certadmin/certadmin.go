// Package certadmin is the COM interfaces by which certificate managers work at a CA: ICertAdminD and ICertAdminD2 ([MS-CSRA]), as certutil
// and the Certification Authority console call them.
//
// Served are: to approve, deny and list requests, to revoke, to ask for CRLs, properties and roles, and to fetch archived keys, still sealed.
// What belongs to a CA's own administration (its configuration, security, database files) is refused: E_ACCESSDENIED to those who are no
// certificate managers, E_NOTIMPL to those who are. Every method demands packet privacy ([MS-CSRA] 3.1.4.1, IF_ENFORCEENCRYPTICERTADMIN).
package certadmin

import (
	"context"
	"maps"
	"time"

	csra "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/orpc"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// CLSID is the class CCertAdminD ([MS-CSRA] 1.9).
var CLSID = pdu.MustUUID("d99e6e73-fc88-11d0-b498-00a0c90312f3")

// The interfaces ([MS-CSRA] 1.9).
var (
	Syntax  = pdu.Syntax{UUID: pdu.MustUUID("d99e6e71-fc88-11d0-b498-00a0c90312f3")} // ICertAdminD
	Syntax2 = pdu.Syntax{UUID: pdu.MustUUID("7fe0d935-dda6-443f-85d0-1cfb58fe41dd")} // ICertAdminD2
)

// Backend is the gateway. Its methods decide themselves what a caller may do, but for Rows and Row: those are called for managers only.
type Backend interface {
	// CA finds a CA by the name that clients call it, "" for the first one; "" where there is none.
	CA(authority string) string
	// Manager tells whether the caller is a certificate manager, by the groups in his ticket and by the directory.
	Manager(ctx context.Context, caller templates.Caller) (bool, error)
	// Approve approves a pending request and returns its disposition, one of ICertRequestD's, or the HRESULT of the refusal.
	Approve(ctx context.Context, caller templates.Caller, ca string, request int64) (disposition uint32, err error)
	Deny(ctx context.Context, caller templates.Caller, ca string, request int64) error
	// Revoke revokes by the serial number of the certificate, in hexadecimal without leading zeros.
	Revoke(ctx context.Context, caller templates.Caller, ca, serial string, reason int) error
	// ArchivedKey is the sealed key of a request, as certutil -getkey writes it.
	ArchivedKey(ctx context.Context, caller templates.Caller, ca string, request int64) ([]byte, error)
	// Property is a property of the CA, as ICertRequestD2 has it, and CRL its current revocation list.
	Property(ctx context.Context, ca string, id, index, kind int32) ([]byte, error)
	PropertyInfo() (count int32, table []byte)

	// Rows are requests, and Last is the number of the newest one.
	Rows(ctx context.Context, q Query) ([]*Row, error)
	Last(ctx context.Context) (int64, error)
	// Account finds the requester that a view is restricted to.
	Account(ctx context.Context, name string) (Account, error)
}

// Limits of parameters: [MS-CSRA] names none.
const (
	maxSerial = 64
	maxName   = 512
	maxValue  = 4 << 10
	maxStub   = 64 << 10
)

// New returns the interfaces' methods. now is time.Now where it is nil.
func New(b Backend, now func() time.Time) *Admin {
	if now == nil {
		now = time.Now
	}
	return &Admin{backend: b, views: newViews(now)}
}

// Admin has the methods, and the views that are open.
type Admin struct {
	backend Backend
	views   *views
}

// Interfaces are ICertAdminD and ICertAdminD2 as a server has them.
func (a *Admin) Interfaces() []server.Interface {
	one, two, both := a.methods(), a.methods2(), maps.Clone(names2)
	maps.Copy(two, one)
	maps.Copy(both, names1)
	return []server.Interface{
		{Name: "ICertAdminD", Syntax: Syntax, Least: pdu.LevelIntegrity, MaxStub: maxStub, Operations: names1, Handle: server.Operations(one)},
		{Name: "ICertAdminD2", Syntax: Syntax2, Least: pdu.LevelIntegrity, MaxStub: maxStub, Operations: both, Handle: server.Operations(two)},
	}
}

var (
	names1 = map[uint16]string{3: "SetExtension", 4: "SetAttributes", 5: "ResubmitRequest", 6: "DenyRequest", 7: "IsValidCertificate", 8: "PublishCRL", 9: "GetCRL",
		10: "RevokeCertificate", 11: "EnumViewColumn", 12: "GetViewDefaultColumnSet", 13: "EnumAttributesOrExtensions", 14: "OpenView", 15: "EnumView", 16: "CloseView",
		17: "ServerControl", 18: "Ping", 19: "GetServerState", 20: "BackupPrepare", 21: "BackupEnd", 22: "BackupGetAttachmentInformation", 23: "BackupGetBackupLogs",
		24: "BackupOpenFile", 25: "BackupReadFile", 26: "BackupCloseFile", 27: "BackupTruncateLogs", 28: "ImportCertificate", 29: "BackupGetDynamicFiles",
		30: "RestoreGetDatabaseLocations"}
	names2 = map[uint16]string{31: "PublishCRLs", 32: "GetCAProperty", 33: "SetCAProperty", 34: "GetCAPropertyInfo", 35: "EnumViewColumnTable", 36: "GetCASecurity",
		37: "SetCASecurity", 38: "Ping2", 39: "GetArchivedKey", 40: "GetAuditFilter", 41: "SetAuditFilter", 42: "GetOfficerRights", 43: "SetOfficerRights",
		44: "GetConfigEntry", 45: "SetConfigEntry", 46: "ImportKey", 47: "GetMyRoles", 48: "DeleteRow"}
)

func (a *Admin) methods() map[uint16]server.Handler {
	authority := orpc.String(request.MaxAuthority)
	out := map[uint16]server.Handler{
		5:  orpc.Handler(orpc.Layout{authority, orpc.Long}, a.resubmitRequest),
		6:  orpc.Handler(orpc.Layout{authority, orpc.Long}, a.denyRequest),
		7:  orpc.Handler(orpc.Layout{authority, orpc.String(maxSerial)}, a.isValidCertificate),
		9:  orpc.Handler(orpc.Layout{authority}, a.getCRL),
		10: orpc.Handler(orpc.Layout{authority, orpc.String(maxSerial), orpc.Long, orpc.Filetime}, a.revokeCertificate),
		11: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long}, a.enumViewColumn),
		12: orpc.Handler(orpc.Layout{authority, orpc.Long}, a.getViewDefaultColumnSet),
		13: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long, orpc.String(maxName), orpc.Long}, a.enumAttributesOrExtensions),
		14: orpc.Handler(orpc.Layout{authority, orpc.Restrictions(maxRestrictions, maxValue), orpc.Longs(maxColumns), orpc.Long, orpc.Long}, a.openView),
		15: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long}, a.enumView),
		16: orpc.Handler(orpc.Layout{authority}, a.closeView),
		18: orpc.Handler(orpc.Layout{authority}, a.ping),
		19: orpc.Handler(orpc.Layout{authority}, a.getServerState),
	}
	a.refuse(out, refused)
	return out
}

func (a *Admin) methods2() map[uint16]server.Handler {
	authority := orpc.String(request.MaxAuthority)
	out := map[uint16]server.Handler{
		32: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long, orpc.Long}, a.getCAProperty),
		34: orpc.Handler(orpc.Layout{authority}, a.getCAPropertyInfo),
		35: orpc.Handler(orpc.Layout{authority, orpc.Long, orpc.Long, orpc.Long}, a.enumViewColumnTable),
		38: orpc.Handler(orpc.Layout{authority}, a.ping2),
		39: orpc.Handler(orpc.Layout{authority, orpc.Long}, a.getArchivedKey),
		44: orpc.Handler(orpc.Layout{authority, orpc.String(maxName), orpc.RefString(maxName)}, a.getConfigEntry),
		47: orpc.Handler(orpc.Layout{authority}, a.getMyRoles),
	}
	a.refuse(out, refused2)
	return out
}

// Roles ([MS-CSRA] 3.1.1.7).
const (
	roleOfficer = 0x002
	roleRead    = 0x100
	roleEnroll  = 0x200
)

// private refuses calls that others could have read, and finds the CA.
func (a *Admin) private(call *server.Call, authority string) (string, error) {
	if err := request.Private(call); err != nil {
		return "", err
	}
	ca := a.backend.CA(authority)
	if ca == "" {
		return "", hresult.New(hresult.InvalidArg, "there is no CA %q here", authority)
	}
	return ca, nil
}

// manager is private for calls of certificate managers.
func (a *Admin) manager(ctx context.Context, call *server.Call, authority string) (string, error) {
	ca, err := a.private(call, authority)
	if err != nil {
		return "", err
	}
	return ca, a.onlyManagers(ctx, call)
}

func (a *Admin) onlyManagers(ctx context.Context, call *server.Call) error {
	is, err := a.backend.Manager(ctx, *call.Caller)
	if err == nil && !is {
		err = NotManager(call.Caller.Principal)
	}
	return err
}

// NotManager is the refusal of somebody who is no certificate manager.
func NotManager(principal string) *hresult.Error {
	return hresult.New(hresult.AccessDenied, "%s is no certificate manager", principal).
		WithFix("name the account, or a group that it is in, under certificate_managers in the gateway's configuration")
}

func blob(value []byte) *csra.CertTransportBlob {
	return &csra.CertTransportBlob{Length: uint32(len(value)), Buffer: value} //nolint:gosec // made here, far below 4 GiB
}

// ping is [MS-CSRA] 3.1.4.1.16.
func (a *Admin) ping(ctx context.Context, call *server.Call, in *icertadmind.PingRequest) (*icertadmind.PingResponse, error) {
	_, err := a.manager(ctx, call, in.Authority)
	return &icertadmind.PingResponse{Return: request.Failed(call, err)}, nil
}

// ping2 is [MS-CSRA] 3.1.4.2.8.
func (a *Admin) ping2(ctx context.Context, call *server.Call, in *icertadmind2.Ping2Request) (*icertadmind2.Ping2Response, error) {
	_, err := a.manager(ctx, call, in.Authority)
	return &icertadmind2.Ping2Response{Return: request.Failed(call, err)}, nil
}

// getServerState is [MS-CSRA] 3.1.4.1.17: whether the caller may read.
func (a *Admin) getServerState(ctx context.Context, call *server.Call, in *icertadmind.GetServerStateRequest) (*icertadmind.GetServerStateResponse, error) {
	_, err := a.private(call, in.Authority)
	out := &icertadmind.GetServerStateResponse{}
	if err == nil {
		var is bool
		if is, err = a.backend.Manager(ctx, *call.Caller); is {
			out.State = 1
		}
	}
	out.Return = request.Failed(call, err)
	return out, nil
}

// getMyRoles is [MS-CSRA] 3.1.4.2.17.
func (a *Admin) getMyRoles(ctx context.Context, call *server.Call, in *icertadmind2.GetMyRolesRequest) (*icertadmind2.GetMyRolesResponse, error) {
	_, err := a.private(call, in.Authority)
	out := &icertadmind2.GetMyRolesResponse{}
	if err == nil {
		var is bool
		if is, err = a.backend.Manager(ctx, *call.Caller); err == nil {
			out.Roles = roleEnroll
		}
		if is {
			out.Roles |= roleOfficer | roleRead
		}
	}
	out.Return = request.Failed(call, err)
	return out, nil
}
