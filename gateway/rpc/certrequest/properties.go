package certrequest

import (
	"context"
	"encoding/binary"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Types of properties ([MS-WCCE] 2.2.2.3).
const (
	typeLong   = 1
	typeBinary = 3
	typeString = 4
)

// What the index of a property is for.
type indexed int

const (
	single    indexed = iota // not indexed: 0
	perCert                  // a signing certificate
	perNewest                // the same, or 0xFFFFFFFF for the newest
	exchange                 // 0 or 0xFFFFFFFF
	perAgent                 // a key recovery agent
	perExit                  // an exit algorithm, of which there are none
	forward                  // a signing certificate that has a next one
	backward                 // a signing certificate that has one before
	partition                // a part of a CRL, of which there are none
)

// property is one of the table of [MS-WCCE] 3.2.1.4.3.2.
type property struct {
	id    int32
	kind  byte
	index indexed
	name  string // for people, as the sections below that one have it
	value func(ca *CA, i int) ([]byte, error)
}

// Numbers of properties that have a method of their own here.
const (
	propExchange         = 0x0f
	propExchangeChain    = 0x10
	propExchangeCRLChain = 0x21
	propMax              = 0x32
)

var properties = []property{
	{0x01, typeString, single, "CA File Version", func(ca *CA, _ int) ([]byte, error) { return text(ca.Version), nil }},
	{0x02, typeString, single, "CA Product Version", func(ca *CA, _ int) ([]byte, error) { return text(ca.Version), nil }},
	{0x03, typeLong, single, "Exit Count", func(*CA, int) ([]byte, error) { return long(0), nil }},
	{0x04, typeString, perExit, "Exit Description", nil},
	{0x05, typeString, single, "Policy Description", func(*CA, int) ([]byte, error) { return text("enrollgate"), nil }},
	{0x06, typeString, single, "Certification Authority Name", func(ca *CA, _ int) ([]byte, error) { return text(ca.Name), nil }},
	{0x07, typeString, single, "Sanitized CA Name", func(ca *CA, _ int) ([]byte, error) { return text(sanitized(ca.Name)), nil }},
	{0x08, typeString, single, "Shared Folder Path", func(*CA, int) ([]byte, error) { return nil, missing("there is no shared folder") }},
	{0x09, typeString, single, "Parent CA Name", parent},
	{0x0a, typeLong, single, "CA Type", func(ca *CA, _ int) ([]byte, error) { return long(ca.caType()), nil }},
	{0x0b, typeLong, single, "CA Signature Certificate Count", func(ca *CA, _ int) ([]byte, error) { return count(len(ca.Signing)), nil }},
	{0x0c, typeBinary, perNewest, "CA Signature Certificate", func(ca *CA, i int) ([]byte, error) { return ca.Signing[i].Certificate.Raw, nil }},
	{0x0d, typeBinary, perNewest, "CA Signing Certificate Chain", func(ca *CA, i int) ([]byte, error) { return message(nil, ca.Signing[i].chain(), nil) }},
	{0x0e, typeLong, single, "CA Exchange Certificate Count", func(*CA, int) ([]byte, error) { return long(1), nil }},
	{propExchange, typeBinary, exchange, "CA Exchange Certificate", nil},
	{propExchangeChain, typeBinary, exchange, "CA Exchange Certificate Chain", nil},
	{0x11, typeBinary, perNewest, "Base CRL", func(ca *CA, i int) ([]byte, error) { return ca.Signing[i].crl() }},
	{0x12, typeBinary, perNewest, "Delta CRL", func(*CA, int) ([]byte, error) { return nil, nil }},
	{0x13, typeLong, perCert, "CA Signing Certificates State", func(ca *CA, _ int) ([]byte, error) {
		return ca.states(func(i int) byte { return ca.state(&ca.Signing[i]) }), nil
	}},
	{0x14, typeLong, perCert, "CA CRL State", func(ca *CA, _ int) ([]byte, error) { return ca.states(ca.crlState), nil }},
	{0x15, typeLong, single, "Maximum Property ID", func(*CA, int) ([]byte, error) { return long(propMax), nil }},
	{0x16, typeString, single, "CA Fully Qualified DNS", func(ca *CA, _ int) ([]byte, error) { return text(ca.DNSName), nil }},
	{0x17, typeLong, single, "Role Separated Enabled", func(*CA, int) ([]byte, error) { return long(0), nil }},
	{0x18, typeLong, single, "Count Of Required KRAs For Archival", func(ca *CA, _ int) ([]byte, error) { return count(ca.Required), nil }},
	{0x19, typeLong, single, "Count Of Registered KRAs", func(ca *CA, _ int) ([]byte, error) { return count(len(ca.Agents)), nil }},
	{0x1a, typeBinary, perAgent, "KRA Certificate", func(ca *CA, i int) ([]byte, error) { return ca.Agents[i].Certificate.Raw, nil }},
	{0x1b, typeLong, perAgent, "KRA Certificates State", agentStates},
	{0x1c, typeLong, single, "Advanced Server", func(*CA, int) ([]byte, error) { return long(1), nil }}, // it archives keys
	{0x1d, typeString, single, "Configured Certificate Templates", templateList},
	{0x1e, typeLong, perNewest, "Base CRL Publishing Status", crlStatus},
	{0x1f, typeLong, perNewest, "Delta CRL Publishing State", func(*CA, int) ([]byte, error) { return nil, missing("there are no delta CRLs") }},
	{0x20, typeBinary, perNewest, "CA Signing Certificate Chain and CRL", crlChain},
	{propExchangeCRLChain, typeBinary, exchange, "CA Exchange Certificate Chain and CRL", nil},
	{0x22, typeLong, perNewest, "CA Signing Certificate Status", certStatus},
	{0x23, typeBinary, forward, "CA Forward Cross Certificate", noCross},
	{0x24, typeBinary, backward, "CA Backward Cross Certificate", noCross},
	{0x25, typeLong, forward, "CA Forward Cross Certificate State", func(ca *CA, _ int) ([]byte, error) { return ca.states(func(int) byte { return dispError }), nil }},
	{0x26, typeLong, backward, "CA Backward Cross Certificate State", func(ca *CA, _ int) ([]byte, error) { return ca.states(func(int) byte { return dispError }), nil }},
	{0x27, typeLong, perCert, "CA Signing Certificates Revisions", versions},
	{0x28, typeString, single, "CA Sanitized Short Name", func(ca *CA, _ int) ([]byte, error) { return text(ca.Short), nil }},
	{0x29, typeString, perNewest, "CRL Distribution Points", func(ca *CA, i int) ([]byte, error) { return list(ca.Signing[i].CDP), nil }},
	{0x2a, typeString, perNewest, "Authority Information Access", func(ca *CA, i int) ([]byte, error) { return list(ca.Signing[i].AIA), nil }},
	{0x2b, typeString, perNewest, "OCSP URLs", func(ca *CA, i int) ([]byte, error) { return list(ca.Signing[i].OCSP), nil }},
	{0x2c, typeString, single, "CA Locale Name", func(ca *CA, _ int) ([]byte, error) { return text(ca.Locale), nil }},
	{0x2d, typeString, single, "Subject Template", func(*CA, int) ([]byte, error) { return list(subjectOrder), nil }},
	{0x2e, typeLong, single, "CRL Partitions Count", func(*CA, int) ([]byte, error) { return long(0), nil }},
	{0x2f, typeLong, partition, "Partitioned Base CRL", nil},
	{0x30, typeLong, partition, "Partitioned Delta CRL", nil},
	{0x31, typeLong, partition, "Partitioned Base CRL Publishing Status", nil},
	{0x32, typeLong, partition, "Partitioned Delta CRL Publishing Status", nil},
}

// subjectOrder is empty: subjects are as the directory and templates say, and of requests as these have them.
var subjectOrder []string

// Property is a property of a CA, as GetCAProperty has it.
func Property(ctx context.Context, b Backend, authority string, id, index, kind int32) ([]byte, error) {
	ca := b.Facts(ctx, authority)
	if ca == nil {
		return nil, hresult.New(hresult.InvalidArg, "there is no CA %q here", authority)
	}
	return (&methods{b}).property(ctx, ca, id, index, kind)
}

// property computes a property, with its index and type as [MS-WCCE] 3.2.1.4.3.2 demands them.
func (m *methods) property(ctx context.Context, ca *CA, id, index, kind int32) ([]byte, error) {
	if id < 1 || id > propMax {
		return nil, hresult.New(hresult.InvalidArg, "there is no property %d", id)
	}
	p := &properties[id-1]
	if kind != int32(p.kind) {
		return nil, hresult.New(hresult.InvalidArg, "the property %q is of type %d, not %d", p.name, p.kind, kind)
	}
	i, err := p.index.check(ca, index)
	if err != nil {
		e := hresult.From(err)
		return nil, hresult.New(e.Code, "the property %q: %s", p.name, e.Text)
	}
	switch id {
	case propExchange, propExchangeChain, propExchangeCRLChain:
		return m.exchange(ctx, ca, id)
	}
	return p.value(ca, i)
}

// check returns an index that can be used.
func (x indexed) check(ca *CA, index int32) (int, error) {
	first, end, fault := 0, len(ca.Signing), hresult.InvalidArg
	switch x {
	case single:
		end = 1
	case perNewest:
		if index == -1 {
			return end - 1, nil
		}
	case exchange:
		if end = 1; index == -1 {
			return 0, nil
		}
	case perAgent:
		end, fault = len(ca.Agents), fileNotFound
	case perExit:
		end, fault = 0, fileNotFound
	case forward:
		end--
	case backward:
		first = 1
	case partition:
		return 0, hresult.New(hresult.InvalidArg, "CRLs are not partitioned")
	case perCert:
	}
	if i := int(index); i >= first && i < end {
		return i, nil
	}
	return 0, hresult.New(fault, "it has no index %d", index)
}

// fileNotFound is what the specification names for what is not there.
const fileNotFound = hresult.FileNotFound

func missing(why string) error { return hresult.New(fileNotFound, "%s", why) }

// parent is [MS-WCCE] 3.2.1.4.3.2.9.
func parent(ca *CA, _ int) ([]byte, error) {
	if ca.root() {
		return nil, missing("a root CA has no parent")
	}
	return text(ca.Parent), nil
}

// templateList is [MS-WCCE] 3.2.2.6.3.1.1.
func templateList(ca *CA, _ int) ([]byte, error) {
	lines := make([]string, 0, 2*len(ca.Templates))
	for _, t := range ca.Templates {
		lines = append(lines, t.Name, t.OID)
	}
	return list(lines), nil
}

// crlChain is [MS-WCCE] 3.2.1.4.3.2.32.
func crlChain(ca *CA, i int) ([]byte, error) {
	crl, err := ca.Signing[i].crl()
	if err != nil {
		return nil, err
	}
	return message(nil, ca.Signing[i].chain(), crl)
}

func agentStates(ca *CA, _ int) ([]byte, error) {
	out := make([]byte, len(ca.Agents))
	for i := range ca.Agents {
		out[i] = byte(ca.Agents[i].State)
	}
	return out, nil
}

func (ca *CA) states(of func(i int) byte) []byte {
	out := make([]byte, len(ca.Signing))
	for i := range out {
		out[i] = of(i)
	}
	return out
}

// How a CRL was published ([MS-CSRA] 3.1.1.4.1).
const (
	crlBase     = 0x1
	crlComplete = 0x4
)

func crlStatus(ca *CA, i int) ([]byte, error) {
	if ca.Signing[i].CRL == nil {
		return long(0), nil
	}
	return long(crlBase | crlComplete), nil
}

// certStatus is [MS-WCCE] 3.2.1.4.3.2.34.
func certStatus(ca *CA, i int) ([]byte, error) {
	switch ca.state(&ca.Signing[i]) {
	case dispValid:
		return long(0), nil
	case dispRevoked:
		return long(hresult.CertRevoked.Int32()), nil
	}
	return long(hresult.CertExpired.Int32()), nil
}

// noCross: a CA here is not its own cross certifier.
func noCross(*CA, int) ([]byte, error) { return nil, missing("there are no cross certificates") }

// versions is [MS-WCCE] 3.2.1.4.3.2.39.
func versions(ca *CA, _ int) ([]byte, error) {
	var out []byte
	for i := range ca.Signing {
		out = binary.LittleEndian.AppendUint16(out, uint16(i))              //nolint:gosec // few
		out = binary.LittleEndian.AppendUint16(out, uint16(ca.keyIndex(i))) //nolint:gosec // few
	}
	return out, nil
}

func long(v int32) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) } //nolint:gosec // its bits

func count(n int) []byte { return long(int32(n)) } //nolint:gosec // few

func text(s string) []byte { return request.EncodeText(s) }

// list is lines that each end with a line feed.
func list(lines []string) []byte {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return text(b.String())
}

// PropertyInfo is the array of CATRANSPROP with the names that it refers to, and how many there are ([MS-WCCE] 2.2.2.3.1).
func PropertyInfo() (count int32, table []byte) {
	const size = 12
	names := []byte{}
	for i := range properties {
		p := &properties[i]
		table = binary.LittleEndian.AppendUint32(table, uint32(p.id)) //nolint:gosec // small
		table = append(table, p.kind, 0)
		flags := uint16(1) // indexed
		if p.index == single {
			flags = 0
		}
		table = binary.LittleEndian.AppendUint16(table, flags)
		table = binary.LittleEndian.AppendUint32(table, uint32(size*len(properties)+len(names))) //nolint:gosec // small
		names = append(names, text(p.name)...)
		for len(names)%4 != 0 {
			names = append(names, 0)
		}
	}
	return int32(len(properties)), append(table, names...) //nolint:gosec // small
}
