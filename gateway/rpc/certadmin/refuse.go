package certadmin

import (
	"context"
	"fmt"

	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	"github.com/oiweiwei/go-msrpc/ndr"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// refusal is a method that is not served. Its parameters are not looked at, so that nothing in them can do harm; it has no result but the
// HRESULT: E_NOTIMPL for certificate managers, who are told by it that the way is another, and E_ACCESSDENIED for others.
func (a *Admin) refusal(answer func(result int32) ndr.Marshaler) server.Handler {
	return func(ctx context.Context, call *server.Call, _ []byte) ([]byte, error) {
		err := request.Private(call)
		if err == nil {
			err = a.onlyManagers(ctx, call)
		}
		if err == nil {
			err = hresult.New(hresult.NotImplemented, "%s is not served: what it does is done on the gateway itself", call.Interface.Operations[call.Operation])
		}
		out, failure := ndr.Marshal(answer(request.Failed(call, err)))
		if failure != nil {
			return nil, fmt.Errorf("encode the response: %w", failure)
		}
		return out, nil
	}
}

// refuse adds methods that are not served.
func (a *Admin) refuse(to map[uint16]server.Handler, methods map[uint16]func(result int32) ndr.Marshaler) {
	for operation, answer := range methods {
		to[operation] = a.refusal(answer)
	}
}

// The methods of ICertAdminD and, of those that are its own, of ICertAdminD2 that are not served.
var (
	refused = map[uint16]func(r int32) ndr.Marshaler{
		3:  func(r int32) ndr.Marshaler { return &icertadmind.SetExtensionResponse{Return: r} },
		4:  func(r int32) ndr.Marshaler { return &icertadmind.SetAttributesResponse{Return: r} },
		8:  func(r int32) ndr.Marshaler { return &icertadmind.PublishCRLResponse{Return: r} },
		17: func(r int32) ndr.Marshaler { return &icertadmind.ServerControlResponse{Return: r} },
		20: func(r int32) ndr.Marshaler { return &icertadmind.BackupPrepareResponse{Return: r} },
		21: func(r int32) ndr.Marshaler { return &icertadmind.BackupEndResponse{Return: r} },
		22: func(r int32) ndr.Marshaler { return &icertadmind.BackupGetAttachmentInformationResponse{Return: r} },
		23: func(r int32) ndr.Marshaler { return &icertadmind.BackupGetBackupLogsResponse{Return: r} },
		24: func(r int32) ndr.Marshaler { return &icertadmind.BackupOpenFileResponse{Return: r} },
		25: func(r int32) ndr.Marshaler { return &icertadmind.BackupReadFileResponse{Return: r} },
		26: func(r int32) ndr.Marshaler { return &icertadmind.BackupCloseFileResponse{Return: r} },
		27: func(r int32) ndr.Marshaler { return &icertadmind.BackupTruncateLogsResponse{Return: r} },
		28: func(r int32) ndr.Marshaler { return &icertadmind.ImportCertificateResponse{Return: r} },
		29: func(r int32) ndr.Marshaler { return &icertadmind.BackupGetDynamicFilesResponse{Return: r} },
		30: func(r int32) ndr.Marshaler { return &icertadmind.RestoreGetDatabaseLocationsResponse{Return: r} },
	}
	refused2 = map[uint16]func(r int32) ndr.Marshaler{
		31: func(r int32) ndr.Marshaler { return &icertadmind2.PublishCRLsResponse{Return: r} },
		33: func(r int32) ndr.Marshaler { return &icertadmind2.SetCAPropertyResponse{Return: r} },
		36: func(r int32) ndr.Marshaler { return &icertadmind2.GetCASecurityResponse{Return: r} },
		37: func(r int32) ndr.Marshaler { return &icertadmind2.SetCASecurityResponse{Return: r} },
		40: func(r int32) ndr.Marshaler { return &icertadmind2.GetAuditFilterResponse{Return: r} },
		41: func(r int32) ndr.Marshaler { return &icertadmind2.SetAuditFilterResponse{Return: r} },
		42: func(r int32) ndr.Marshaler { return &icertadmind2.GetOfficerRightsResponse{Return: r} },
		43: func(r int32) ndr.Marshaler { return &icertadmind2.SetOfficerRightsResponse{Return: r} },
		45: func(r int32) ndr.Marshaler { return &icertadmind2.SetConfigEntryResponse{Return: r} },
		46: func(r int32) ndr.Marshaler { return &icertadmind2.ImportKeyResponse{Return: r} },
		48: func(r int32) ndr.Marshaler { return &icertadmind2.DeleteRowResponse{Return: r} },
	}
)
