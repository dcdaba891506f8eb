package certadmin

import (
	"context"
	"strings"
	"time"

	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// resubmitRequest is [MS-CSRA] 3.1.4.1.3: the request is approved. As since Windows Server 2008, an unknown one is the method's result.
func (a *Admin) resubmitRequest(ctx context.Context, call *server.Call, in *icertadmind.ResubmitRequestRequest) (*icertadmind.ResubmitRequestResponse, error) {
	call.Log("request", in.RequestID)
	ca, err := a.private(call, in.Authority)
	out := &icertadmind.ResubmitRequestResponse{}
	if err == nil {
		out.Disposition, err = a.backend.Approve(ctx, *call.Caller, ca, int64(in.RequestID))
	}
	if out.Return = request.Failed(call, err); err == nil && out.Disposition > 0xff {
		call.Result(hresult.Code(out.Disposition).Name())
	}
	return out, nil
}

// denyRequest is [MS-CSRA] 3.1.4.1.4.
func (a *Admin) denyRequest(ctx context.Context, call *server.Call, in *icertadmind.DenyRequestRequest) (*icertadmind.DenyRequestResponse, error) {
	call.Log("request", in.RequestID)
	ca, err := a.private(call, in.Authority)
	if err == nil {
		err = a.backend.Deny(ctx, *call.Caller, ca, int64(in.RequestID))
	}
	return &icertadmind.DenyRequestResponse{Return: request.Failed(call, err)}, nil
}

// Dispositions of IsValidCertificate ([MS-CSRA] 3.1.4.1.5).
const (
	certRevoked = 2
	certValid   = 3
	certUnknown = 4
)

func (a *Admin) isValidCertificate(ctx context.Context, call *server.Call, in *icertadmind.IsValidCertificateRequest) (*icertadmind.IsValidCertificateResponse, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	serial := ""
	if err == nil {
		serial, err = serialOf(in.SerialNumber)
	}
	out := &icertadmind.IsValidCertificateResponse{Disposition: certUnknown}
	if err == nil {
		var rows []*Row
		rows, err = a.backend.Rows(ctx, Query{CA: ca, Serial: serial, Dispositions: []Disposition{Issued, Revoked}, Limit: 2})
		switch {
		case len(rows) == 0:
		case len(rows) > 1 && rows[0].Disposition != rows[1].Disposition: // of two CAs that sign for this one
			err = hresult.New(hresult.InvalidArg, "one certificate with the serial number %s is valid, and another is revoked", serial)
		case rows[0].Disposition == Issued:
			out.Disposition = certValid
		default:
			out.Disposition = certRevoked
		}
	}
	out.Return = request.Failed(call, err)
	return out, nil
}

// serialOf reads a serial number in hexadecimal.
func serialOf(text string) (string, error) {
	serial := strings.ToLower(strings.TrimLeft(text, "0"))
	if serial == "" || strings.Trim(serial, "0123456789abcdef") != "" {
		return "", hresult.New(hresult.InvalidArg, "%q is no serial number in hexadecimal", text)
	}
	return serial, nil
}

// Reasons that mean something else than a CRLReason ([MS-CSRA] 3.1.4.1.8).
const (
	reasonRemove    = 8
	reasonReleased  = 0xffffffff
	reasonExpireOff = 0xfffffffd
	reasonExpireOn  = 0xfffffffe
)

// revokeCertificate is [MS-CSRA] 3.1.4.1.8. Revocations count from now on: CAs behind the gateway take no other date.
func (a *Admin) revokeCertificate(ctx context.Context, call *server.Call, in *icertadmind.RevokeCertificateRequest) (*icertadmind.RevokeCertificateResponse, error) {
	call.Log("serial", in.SerialNumber)
	ca, err := a.private(call, in.Authority)
	serial := ""
	if err == nil {
		serial, err = serialOf(in.SerialNumber)
	}
	switch {
	case err != nil:
	case in.Reason == reasonReleased || in.Reason == reasonRemove:
		err = hresult.New(hresult.NotSupported, "a revoked certificate is not taken off the revocation list again")
	case in.Reason == reasonExpireOff || in.Reason == reasonExpireOn:
		err = hresult.New(hresult.NotSupported, "whether revocation lists have expired certificates cannot be said for one of them")
	case in.Reason > 6:
		err = hresult.New(hresult.InvalidArg, "%d is no reason to revoke a certificate", in.Reason)
	case in.FileTime != nil && fromFiletime(uint64(in.FileTime.HighDateTime)<<32|uint64(in.FileTime.LowDateTime)).After(a.views.now().Add(time.Hour)):
		err = hresult.New(hresult.NotSupported, "a certificate is revoked now, not at a later date")
	default:
		err = a.backend.Revoke(ctx, *call.Caller, ca, serial, int(in.Reason))
	}
	return &icertadmind.RevokeCertificateResponse{Return: request.Failed(call, err)}, nil
}

// getArchivedKey is [MS-CSRA] 3.1.4.2.9.
func (a *Admin) getArchivedKey(ctx context.Context, call *server.Call, in *icertadmind2.GetArchivedKeyRequest) (*icertadmind2.GetArchivedKeyResponse, error) {
	call.Log("request", in.RequestID)
	ca, err := a.private(call, in.Authority)
	var key []byte
	if err == nil {
		key, err = a.backend.ArchivedKey(ctx, *call.Caller, ca, int64(in.RequestID))
	}
	return &icertadmind2.GetArchivedKeyResponse{ArchivedKey: blob(key), Return: request.Failed(call, err)}, nil
}

const (
	propCRL    = 0x11
	typeBinary = 3
)

// getCRL is [MS-CSRA] 3.1.4.1.7.
func (a *Admin) getCRL(ctx context.Context, call *server.Call, in *icertadmind.GetCRLRequest) (*icertadmind.GetCRLResponse, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	var crl []byte
	if err == nil {
		crl, err = a.backend.Property(ctx, ca, propCRL, -1, typeBinary)
	}
	if err == nil && len(crl) == 0 {
		err = hresult.New(hresult.FileNotFound, "the CA has no revocation list here")
	}
	return &icertadmind.GetCRLResponse{CRL: blob(crl), Return: request.Failed(call, err)}, nil
}

// getCAProperty is [MS-CSRA] 3.1.4.2.2.
func (a *Admin) getCAProperty(ctx context.Context, call *server.Call, in *icertadmind2.GetCAPropertyRequest) (*icertadmind2.GetCAPropertyResponse, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	var value []byte
	if err == nil {
		value, err = a.backend.Property(ctx, ca, in.PropertyID, in.PropertyIndex, in.PropertyType)
	}
	call.Log("property", in.PropertyID)
	return &icertadmind2.GetCAPropertyResponse{PropertyValue: blob(value), Return: request.Failed(call, err)}, nil
}

// getCAPropertyInfo is [MS-CSRA] 3.1.4.2.4.
func (a *Admin) getCAPropertyInfo(ctx context.Context, call *server.Call, in *icertadmind2.GetCAPropertyInfoRequest) (*icertadmind2.GetCAPropertyInfoResponse, error) {
	if _, err := a.manager(ctx, call, in.Authority); err != nil {
		return &icertadmind2.GetCAPropertyInfoResponse{PropertyInfo: blob(nil), Return: request.Failed(call, err)}, nil
	}
	count, table := a.backend.PropertyInfo()
	return &icertadmind2.GetCAPropertyInfoResponse{PropertyCount: count, PropertyInfo: blob(table)}, nil
}
