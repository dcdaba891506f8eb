package certadmin

import (
	"context"
	"encoding/binary"
	"strings"
	"unicode/utf16"

	icertadmind2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind2/v0"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/oaut"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Types of a VARIANT ([MS-OAUT] 2.2.7).
const (
	variantEmpty  = 0
	variantLong   = 3
	variantString = 8
)

// Values of configuration entries ([MS-CSRA] 3.1.4.2.14).
const (
	setupServer     = 0x1   // SetupStatus: the server is installed
	enforceRequests = 0x200 // InterfaceFlags: IF_ENFORCEENCRYPTICERTREQUEST
	enforceAdmin    = 0x400 // IF_ENFORCEENCRYPTICERTADMIN
	auditEverything = 0x7f  // AuditFilter
)

// Properties of the CA that are configuration entries too.
const (
	propName   = 0x06
	propType   = 0x0a
	typeLong   = 1
	typeString = 4
)

// getConfigEntry is [MS-CSRA] 3.1.4.2.14, for what is true of every CA here and what follows from its properties. Other entries are of the
// registry of a Windows CA: they do not exist.
func (a *Admin) getConfigEntry(ctx context.Context, call *server.Call, in *icertadmind2.GetConfigEntryRequest) (*icertadmind2.GetConfigEntryResponse, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	value := &oaut.Variant{Size: 3, VT: variantEmpty}
	if err == nil {
		var v *oaut.Variant
		if v, err = a.entry(ctx, ca, in.NodePath, in.Entry); err == nil {
			value = v
		}
	}
	return &icertadmind2.GetConfigEntryResponse{Variant: value, Return: request.Failed(call, err)}, nil
}

func (a *Admin) entry(ctx context.Context, ca, node, name string) (*oaut.Variant, error) {
	if node == "" {
		switch strings.ToLower(name) {
		case "commonname":
			b, err := a.backend.Property(ctx, ca, propName, 0, typeString)
			if err != nil {
				return nil, err
			}
			s, err := textOf(&column{name: "CommonName"}, b)
			return stringVariant(s), err
		case "catype":
			b, err := a.backend.Property(ctx, ca, propType, 0, typeLong)
			if err != nil {
				return nil, err
			}
			return longVariant(int32(binary.LittleEndian.Uint32(b))), nil //nolint:gosec // its bits
		case "setupstatus":
			return longVariant(setupServer), nil
		case "useds":
			return longVariant(1), nil
		case "kraflags", "crldeltaperiodunits":
			return longVariant(0), nil
		case "interfaceflags":
			return longVariant(enforceRequests | enforceAdmin), nil
		case "auditfilter":
			return longVariant(auditEverything), nil
		}
	}
	if strings.EqualFold(node, "PolicyModules") && strings.EqualFold(name, "Active") {
		return stringVariant("enrollgate"), nil
	}
	return nil, hresult.New(hresult.FileNotFound, `there is no configuration entry %q in %q`, name, node)
}

// variantHead is what comes before the value, in octets; sizes are in units of 8 ([MS-OAUT] 2.2.29.1).
const variantHead = 20

func longVariant(v int32) *oaut.Variant {
	return &oaut.Variant{Size: (variantHead + 4 + 7) / 8, VT: variantLong, VarUnion: &oaut.Variant_VarUnion{Value: &oaut.Variant_VarUnion_Long{Long: v}}}
}

func stringVariant(s string) *oaut.Variant {
	units := uint32(len(utf16.Encode([]rune(s)))) //nolint:gosec // short
	return &oaut.Variant{Size: (variantHead + 16 + 2*units + 7) / 8, VT: variantString,
		VarUnion: &oaut.Variant_VarUnion{Value: &oaut.Variant_VarUnion_BSTR{BSTR: &oaut.String{Data: s, BytesCount: 2 * units, Size: units}}}}
}
