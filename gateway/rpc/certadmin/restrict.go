package certadmin

import (
	"context"
	"crypto/sha1" //nolint:gosec // what CertificateHash is
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	csra "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Operators and orders ([MS-CSRA] 2.2.1.3).
const (
	opEqual          = 1
	opLess           = 2
	opLessOrEqual    = 4
	opGreaterOrEqual = 8
	opGreater        = 16

	orderDescending = 2
)

// Numbers of whole views in place of a column's ([MS-CSRA] 3.1.4.1.10), with the dispositions that they have.
var wholeViews = map[uint32][]Disposition{
	0xffffffff: {Active, Pending},
	0xfffffffe: {Issued, Revoked},
	0xfffffffd: {Failed, Denied},
	0xfffffff9: {Revoked},
}

// restrict narrows a query. What cannot be looked for is refused by name.
func (a *Admin) restrict(ctx context.Context, q *Query, list []*csra.CertViewRestriction) error {
	sorted := false
	for _, r := range list {
		if r.SortOrder != 0 {
			if sorted || r.ColumnIndex != colRequestID && r.ColumnIndex != colCertID {
				return hresult.New(hresult.InvalidArg, "views are sorted by the number of the request, up or down")
			}
			sorted, q.Descending = true, r.SortOrder == orderDescending
		}
		if r.SeekOperator == 0 {
			continue
		}
		if d, ok := wholeViews[r.ColumnIndex]; ok {
			q.keep(func(x Disposition) bool { return slices.Contains(d, x) })
			continue
		}
		c := columnOf(r.ColumnIndex)
		if c == nil {
			return hresult.New(hresult.InvalidArg, "the requests have no column 0x%x", r.ColumnIndex)
		}
		if err := a.restrictBy(ctx, q, c, r); err != nil {
			return err
		}
	}
	return nil
}

func (a *Admin) restrictBy(ctx context.Context, q *Query, c *column, r *csra.CertViewRestriction) error {
	switch c.id {
	case colRequestID, colCertID, colDisposition:
		v, err := longOf(c, r.Value)
		if err != nil {
			return err
		}
		return q.byNumber(c, r.SeekOperator, v)
	case colSubmitted, colNotAfter:
		v, err := dateOf(c, r.Value)
		if err != nil {
			return err
		}
		return q.byDate(c, r.SeekOperator, v)
	case colRequester, colCaller, colTemplate, colSerial, colCommonName, colUPN, colHash, colKeyID:
		v, err := textOf(c, r.Value)
		if err != nil {
			return err
		}
		if r.SeekOperator != opEqual {
			return hresult.New(hresult.InvalidArg, "the column %s is compared by = only", c.name)
		}
		return a.byText(ctx, q, c, v)
	}
	return hresult.New(hresult.InvalidArg, "views are not restricted by the column %s: by number, disposition, requester, template, submission and expiration date they are, and by the common name, UPN, serial number, hash and subject key identifier of the certificate", c.name)
}

func (q *Query) byNumber(c *column, operator int32, v int64) error {
	compare, err := comparison(c, operator)
	if err != nil {
		return err
	}
	if c.id == colDisposition {
		q.keep(func(d Disposition) bool { return compare(int64(d), v) })
		return nil
	}
	switch operator {
	case opEqual:
		q.First, q.Last = max(q.First, v), min(q.Last, v)
	case opLess:
		q.Last = min(q.Last, v-1)
	case opLessOrEqual:
		q.Last = min(q.Last, v)
	case opGreater:
		q.First = max(q.First, v+1)
	case opGreaterOrEqual:
		q.First = max(q.First, v)
	}
	q.Nobody = q.Nobody || q.Last < max(q.First, 1)
	return nil
}

func comparison(c *column, operator int32) (func(a, b int64) bool, error) {
	switch operator {
	case opEqual:
		return func(a, b int64) bool { return a == b }, nil
	case opLess:
		return func(a, b int64) bool { return a < b }, nil
	case opLessOrEqual:
		return func(a, b int64) bool { return a <= b }, nil
	case opGreater:
		return func(a, b int64) bool { return a > b }, nil
	case opGreaterOrEqual:
		return func(a, b int64) bool { return a >= b }, nil
	}
	return nil, hresult.New(hresult.InvalidArg, "the column %s is compared by the unknown operator %d", c.name, operator)
}

// keep leaves the dispositions that are wanted.
func (q *Query) keep(wanted func(Disposition) bool) {
	if q.Dispositions == nil {
		q.Dispositions = slices.Clone(dispositions)
	}
	q.Dispositions = slices.DeleteFunc(q.Dispositions, func(d Disposition) bool { return !wanted(d) })
	q.Nobody = q.Nobody || len(q.Dispositions) == 0
}

// byDate has milliseconds, as the ledger does.
func (q *Query) byDate(c *column, operator int32, v time.Time) error {
	from, to := &q.SubmittedFrom, &q.SubmittedTo
	if c.id == colNotAfter {
		from, to = &q.EndFrom, &q.EndTo
	}
	later := func(t time.Time) {
		if t.After(*from) {
			*from = t
		}
	}
	earlier := func(t time.Time) {
		if to.IsZero() || t.Before(*to) {
			*to = t
		}
	}
	switch operator {
	case opEqual:
		later(v)
		earlier(v)
	case opLess:
		earlier(v.Add(-time.Millisecond))
	case opLessOrEqual:
		earlier(v)
	case opGreater:
		later(v.Add(time.Millisecond))
	case opGreaterOrEqual:
		later(v)
	default:
		return hresult.New(hresult.InvalidArg, "the column %s is compared by the unknown operator %d", c.name, operator)
	}
	return nil
}

func (a *Admin) byText(ctx context.Context, q *Query, c *column, v string) error {
	only := func(field *string, value string) {
		q.Nobody = q.Nobody || *field != "" && !strings.EqualFold(*field, value)
		*field = value
	}
	switch c.id {
	case colRequester, colCaller:
		account, err := a.backend.Account(ctx, v)
		if hresult.From(err).Code == hresult.NoSuchUser {
			q.Nobody = true
			return nil
		}
		if err != nil {
			return err
		}
		only((*string)(&q.Requester), string(account.SID))
	case colTemplate:
		only(&q.Template, v)
	case colCommonName: // of several, which are shown as lines, the last one names the subject itself
		only(&q.CommonName, v[strings.LastIndexByte(v, '\n')+1:])
	case colUPN:
		only(&q.UPN, v)
	case colHash, colKeyID:
		octets, err := hex.DecodeString(strings.ReplaceAll(v, " ", "")) // programs write them with and without blanks between
		if err != nil || c.id == colHash && len(octets) != sha1.Size {
			return hresult.New(hresult.InvalidArg, "%q is no %s in hexadecimal", v, c.name)
		}
		field := &q.Hash
		if c.id == colKeyID {
			field = &q.SubjectKeyID
		}
		only(field, hex.EncodeToString(octets))
	case colSerial:
		serial, err := serialOf(v)
		if err != nil {
			return err
		}
		only(&q.Serial, serial)
	}
	return nil
}

func wrongValue(c *column, b []byte) error {
	return hresult.New(hresult.InvalidArg, "the value of %d octets that the column %s is compared with is not of its type", len(b), c.name)
}

func longOf(c *column, b []byte) (int64, error) {
	if len(b) != 4 {
		return 0, wrongValue(c, b)
	}
	return int64(binary.LittleEndian.Uint32(b)), nil
}

func dateOf(c *column, b []byte) (time.Time, error) {
	if len(b) != 8 {
		return time.Time{}, wrongValue(c, b)
	}
	v := binary.LittleEndian.Uint64(b)
	t := fromFiletime(v)
	if v >= 1<<62 || t.Year() < 1970 { // the ledger's times are Unix milliseconds
		t = time.UnixMilli(1)
		if v >= 1<<62 {
			t = time.UnixMilli(1 << 52)
		}
	}
	return t.Truncate(time.Millisecond), nil
}

// textOf reads UTF-16 with or without a final zero.
func textOf(c *column, b []byte) (string, error) {
	if len(b) == 0 || len(b)%2 != 0 {
		return "", wrongValue(c, b)
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	s := strings.TrimSuffix(string(utf16.Decode(units)), "\x00")
	if s == "" || strings.ContainsRune(s, 0) {
		return "", wrongValue(c, b)
	}
	return s, nil
}
