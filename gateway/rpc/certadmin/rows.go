package certadmin

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Disposition is Request.Disposition as Windows keeps it; certutil restricts views by these numbers.
type Disposition uint32

// The dispositions that there are here.
const (
	Active  Disposition = 8 // decided; the CA works on it
	Pending Disposition = 9
	Issued  Disposition = 20
	Revoked Disposition = 21
	Failed  Disposition = 30
	Denied  Disposition = 31
)

var dispositions = []Disposition{Active, Pending, Issued, Revoked, Failed, Denied}

// Row is one request.
type Row struct {
	ID          int64
	Disposition Disposition
	Status      hresult.Code
	Message     string
	Submitted   time.Time
	Resolved    time.Time // zero while it is not
	Revoked     time.Time
	Requester   string
	Template    string
	TemplateOID string
	Subject     []byte // distinguished name in DER, as decided
	Request     []byte // PKCS#10
	Certificate []byte // DER; nil where there is none
	Serial      string // hexadecimal
	Extensions  []pkix.Extension
}

// Account is a requester.
type Account struct{ SID security.SID }

// Query says which rows are wanted: those that are all that it names.
type Query struct {
	CA           string
	Dispositions []Disposition // one of these; nil: any
	First, Last  int64         // numbers, inclusive
	Requester    security.SID
	Template     string
	Serial       string
	CommonName   string // of issued certificates, as are these
	UPN          string
	Hash         string // hexadecimal
	SubjectKeyID string // likewise
	Nobody       bool   // there are none

	SubmittedFrom, SubmittedTo time.Time
	EndFrom, EndTo             time.Time

	Descending bool
	Skip       int
	Limit      int
}

// Types of columns ([MS-CSRA] 2.2.1.7).
const (
	columnLong   = 1
	columnDate   = 2
	columnBinary = 3
	columnString = 4
	columnIndex  = 0x00010000
)

// column is one of the request table ([MS-CSRA] 3.1.1.1), with the number that Windows has for it: programs have these in files.
type column struct {
	id    uint32
	name  string
	show  string
	kind  uint32
	limit uint32
	value func(r *Row, c *x509.Certificate) []byte // nil: null. c is nil where there is no certificate.
}

// Columns that views may be restricted by.
const (
	colRequestID   = 0x1000
	colDisposition = 0x1009
	colSubmitted   = 0x100b
	colRequester   = 0x1010
	colCaller      = 0x1011
	colCertID      = 0x2000
	colHash        = 0x2002
	colTemplate    = 0x2003
	colSerial      = 0x2006
	colNotAfter    = 0x2009
	colKeyID       = 0x200a
	colUPN         = 0x2010
	colCommonName  = 0x2016
)

const (
	maxDN   = 8 << 10
	maxRaw  = 64 << 10
	maxWord = 1 << 10
)

func rowID(r *Row, _ *x509.Certificate) []byte { return long(uint32(r.ID)) } //nolint:gosec // a number on the wire

// columnOf finds a column by its number.
func columnOf(id uint32) *column {
	for i := range columns {
		if columns[i].id == id {
			return &columns[i]
		}
	}
	return nil
}

func issued(value func(c *x509.Certificate) []byte) func(*Row, *x509.Certificate) []byte {
	return func(_ *Row, c *x509.Certificate) []byte {
		if c == nil {
			return nil
		}
		return value(c)
	}
}

// asked is a part of the name that was decided, and named of that in the certificate.
func asked(oid string) func(*Row, *x509.Certificate) []byte {
	return func(r *Row, _ *x509.Certificate) []byte { return part(r.Subject, oid) }
}

func named(oid string) func(*Row, *x509.Certificate) []byte {
	return issued(func(c *x509.Certificate) []byte { return part(c.RawSubject, oid) })
}

// part is the values of one type in a name, a line for each.
func part(name []byte, oid string) []byte {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(name, &rdns); err != nil || len(rest) > 0 {
		return nil
	}
	var out []string
	for _, rdn := range rdns {
		for _, a := range rdn {
			if s, ok := a.Value.(string); ok && a.Type.String() == oid {
				out = append(out, s)
			}
		}
	}
	return text(strings.Join(out, "\n"))
}

func distinguished(name []byte) []byte {
	if len(name) == 0 {
		return nil
	}
	return text(dn.Show(name))
}

// evenHex has an even number of digits, as serial numbers are written in the database of AD CS.
func evenHex(serial string) string {
	if len(serial)%2 != 0 {
		return "0" + serial
	}
	return serial
}

func long(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

// text is null where it is empty.
func text(s string) []byte {
	if s == "" {
		return nil
	}
	return request.EncodeText(s)
}

// epoch is 1601-01-01 in Unix seconds.
const epoch = -11644473600

// date is a CERTTIME ([MS-CSRA] 2.2.1.12); null for the zero time.
func date(t time.Time) []byte {
	if t.IsZero() {
		return nil
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(t.Unix()-epoch)*1e7+uint64(t.Nanosecond())/100) //nolint:gosec // after 1601
}

// fromFiletime is the zero time for 0, and for what is too far away.
func fromFiletime(v uint64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(int64(v/1e7)+epoch, int64(v%1e7)*100).UTC() //nolint:gosec // below 2^61
}

// encodeRow is a CERTTRANSDBRESULTROW with its columns ([MS-CSRA] 2.2.3.1, 2.2.1.10.1).
func encodeRow(r *Row, wanted []*column) []byte {
	const header, size = 12, 16
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		cert = nil
	}
	var heads, values []byte
	for _, c := range wanted {
		value := c.value(r, cert)
		offset := uint32(0)
		if len(value) > 0 {
			offset = uint32(header + size*len(wanted) + len(values)) //nolint:gosec // a row is small
		}
		for _, v := range []uint32{c.kind, c.id, offset, uint32(len(value))} { //nolint:gosec // a row is small
			heads = binary.LittleEndian.AppendUint32(heads, v)
		}
		values = append(values, value...)
		for len(values)%4 != 0 {
			values = append(values, 0)
		}
	}
	out := long(uint32(r.ID))                                               //nolint:gosec // a number on the wire
	out = append(out, long(uint32(len(wanted)))...)                         //nolint:gosec // few
	total := header + len(heads) + len(values)                              // of this row
	out = append(append(out, long(uint32(total))...) /* cbrow */, heads...) //nolint:gosec // a row is small
	return append(out, values...)
}

// encodeEnd follows the last row of a view ([MS-CSRA] 3.1.4.1.13).
func encodeEnd(total int) []byte {
	n := uint32(total) //nolint:gosec // a number on the wire
	return append(append(long(n), long(^n)...), long(12)...)
}

// encodeColumns is an array of CERTTRANSDBCOLUMN ([MS-CSRA] 2.2.1.7.1).
func encodeColumns(list []column) []byte {
	const size = 20
	var heads, names []byte
	add := func(s string) uint32 {
		at := size*len(list) + len(names)
		names = append(names, request.EncodeText(s)...)
		for len(names)%4 != 0 {
			names = append(names, 0)
		}
		return uint32(at) //nolint:gosec // small
	}
	for i := range list {
		c := &list[i]
		for _, v := range []uint32{c.kind, c.id, c.limit, add(c.name), add(c.show)} {
			heads = binary.LittleEndian.AppendUint32(heads, v)
		}
	}
	return append(heads, names...)
}
