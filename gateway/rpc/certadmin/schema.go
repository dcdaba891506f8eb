package certadmin

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"strings"

	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"
	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// enumViewColumn is [MS-CSRA] 3.1.4.1.9.
func (a *Admin) enumViewColumn(ctx context.Context, call *server.Call, in *icertadmind.EnumViewColumnRequest) (*icertadmind.EnumViewColumnResponse, error) {
	n, table, err := a.schema(ctx, call, in.Authority, 0, in.Column, in.ColumnCount)
	return &icertadmind.EnumViewColumnResponse{ColumnOutCount: n, ColumnInfo: blob(table), Return: request.Failed(call, err)}, nil
}

// enumViewColumnTable is [MS-CSRA] 3.1.4.2.5.
func (a *Admin) enumViewColumnTable(ctx context.Context, call *server.Call, in *icertadmind2.EnumViewColumnTableRequest) (*icertadmind2.EnumViewColumnTableResponse, error) {
	n, table, err := a.schema(ctx, call, in.Authority, in.Table, in.Column, in.ColumnCount)
	return &icertadmind2.EnumViewColumnTableResponse{ColumnOutCount: n, ColumnInfo: blob(table), Return: request.Failed(call, err)}, nil
}

func (a *Admin) schema(ctx context.Context, call *server.Call, authority string, table, first, count uint32) (uint32, []byte, error) {
	if _, err := a.manager(ctx, call, authority); err != nil {
		return 0, nil, err
	}
	switch {
	case table != 0:
		return 0, nil, hresult.New(hresult.InvalidArg, "there are views of requests only, not of the table 0x%x", table)
	case count == 0:
		return 0, nil, hresult.New(hresult.InvalidArg, "no columns are asked for")
	case int64(first) >= int64(len(columns)):
		return 0, nil, hresult.New(hresult.Overflow, "there is no column %d: there are %d", first, len(columns))
	}
	list := columns[first:]
	list = list[:min(int64(len(list)), int64(count))]
	return uint32(len(list)), encodeColumns(list), nil //nolint:gosec // few
}

// Columns that consoles show ([MS-CSRA] 3.1.4.1.10, as Windows has them).
var columnSets = map[uint32][]uint32{
	0xffffffff: pendingColumns,
	0xfffffffe: issuedColumns,
	0xfffffffd: pendingColumns,
	0xfffffff9: append(slices.Clip(slices.Clone(issuedColumns)), 0x100d, 0x100e, 0x100f),
}

var (
	pendingColumns = []uint32{colRequestID, colRequester, colSubmitted, 0x1008, 0x100a, colTemplate, 0x101a, 0x1022, 0x1019, 0x1018, 0x101b, 0x101c, 0x1017, 0x1001}
	issuedColumns  = []uint32{colRequestID, colRequester, colSerial, 0x2008, colNotAfter, colTemplate, 0x2016, 0x201e, 0x2015, 0x2014, 0x2017, 0x2018, 0x2013, 0x2001}
)

func (a *Admin) getViewDefaultColumnSet(ctx context.Context, call *server.Call, in *icertadmind.GetViewDefaultColumnSetRequest) (*icertadmind.GetViewDefaultColumnSetResponse, error) {
	_, err := a.manager(ctx, call, in.Authority)
	set := columnSets[in.ColumnSetDefault]
	if err == nil && set == nil {
		err = hresult.New(hresult.InvalidArg, "there is no set 0x%x of columns", in.ColumnSetDefault)
	}
	if err != nil {
		return &icertadmind.GetViewDefaultColumnSetResponse{ColumnInfo: blob(nil), Return: request.Failed(call, err)}, nil
	}
	var out []byte
	for _, id := range set {
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	return &icertadmind.GetViewDefaultColumnSetResponse{ColumnOutCount: uint32(len(set)), ColumnInfo: blob(out)}, nil //nolint:gosec // few
}

// enumAttributesOrExtensions is [MS-CSRA] 3.1.4.1.11.
func (a *Admin) enumAttributesOrExtensions(ctx context.Context, call *server.Call, in *icertadmind.EnumAttributesOrExtensionsRequest) (*icertadmind.EnumAttributesOrExtensionsResponse, error) {
	n, table, err := a.parts(ctx, call, in)
	return &icertadmind.EnumAttributesOrExtensionsResponse{Fetched: n, Out: blob(table), Return: request.Failed(call, err)}, nil
}

// item is an attribute or an extension.
type item struct {
	name  string
	flags uint32
	value []byte
}

// Where an extension is from ([MS-CSRA] 2.2.1.9): the policy of the CA.
const (
	extensionCritical = 1
	extensionByPolicy = 0x00020000
)

func (a *Admin) parts(ctx context.Context, call *server.Call, in *icertadmind.EnumAttributesOrExtensionsRequest) (uint32, []byte, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	switch {
	case err != nil:
		return 0, nil, err
	case in.Flags > 1 || in.RowID == 0:
		return 0, nil, hresult.New(hresult.InvalidArg, "request %d, flags %d", in.RowID, in.Flags)
	}
	rows, err := a.backend.Rows(ctx, Query{CA: ca, First: int64(in.RowID), Last: int64(in.RowID), Limit: 1})
	if err != nil {
		return 0, nil, err
	}
	if len(rows) == 0 {
		return 0, nil, hresult.New(hresult.PropertyEmpty, "there is no request %d", in.RowID)
	}
	list := []item{{name: "CertificateTemplate", value: request.EncodeText(rows[0].Template)}}
	if in.Flags == 1 {
		list = extensions(rows[0])
	}
	if in.Last != "" {
		i := slices.IndexFunc(list, func(x item) bool { return strings.EqualFold(x.name, in.Last) })
		if i < 0 {
			return 0, nil, hresult.New(hresult.PropertyEmpty, "request %d has no %q", in.RowID, in.Last)
		}
		list = list[i+1:]
	}
	list = list[:min(int64(len(list)), int64(in.Count))]
	return uint32(len(list)), encodeItems(list, in.Flags == 1), nil //nolint:gosec // few
}

// extensions are those of the certificate, or, while there is none, those that were decided.
func extensions(r *Row) (out []item) {
	list := r.Extensions
	if cert, err := x509.ParseCertificate(r.Certificate); err == nil {
		list = cert.Extensions
	}
	for _, e := range list {
		flags := uint32(extensionByPolicy)
		if e.Critical {
			flags |= extensionCritical
		}
		out = append(out, item{e.Id.String(), flags, e.Value})
	}
	return out
}

// encodeItems is an array of CERTTRANSDBATTRIBUTE or CERTTRANSDBEXTENSION ([MS-CSRA] 2.2.1.8.1, 2.2.1.9.1).
func encodeItems(list []item, withFlags bool) []byte {
	size := 8
	if withFlags {
		size = 16
	}
	var heads, values []byte
	add := func(b []byte) uint32 {
		at := size*len(list) + len(values)
		values = append(values, b...)
		for len(values)%4 != 0 {
			values = append(values, 0)
		}
		return uint32(at) //nolint:gosec // small
	}
	for _, x := range list {
		fields := []uint32{add(request.EncodeText(x.name))}
		if withFlags {
			fields = append(fields, x.flags, uint32(len(x.value))) //nolint:gosec // small
		}
		for _, v := range append(fields, add(x.value)) {
			heads = binary.LittleEndian.AppendUint32(heads, v)
		}
	}
	return append(heads, values...)
}
