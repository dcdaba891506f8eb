// Package adcs reads what AD CS knows: the export of a CA's database that certutil writes,
//
//	certutil -view -restrict "Disposition>=20,Disposition<=21" -out "RequestID,Request.Disposition,RequesterName,CertificateTemplate,RawRequest,RawCertificate" csv
//
// The heading of each column is in the language of Windows. What a certificate says itself, its serial number, template and times
// among it, is taken from the certificate, and the columns are found by what is in them.
package adcs

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/csv"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Entry is one row of the export.
type Entry struct {
	Line        int // in the file
	RequestID   int64
	Requester   string // CORP\alice
	Template    string // name or OID, as the CA's database has it
	Disposition int    // 20 issued, 21 revoked ([MS-CSRA] 3.1.1.1.2); 0 where the export does not say
	Certificate *x509.Certificate
	Request     []byte // PKCS#10, CMC or PKCS#7; nil where the export does not have it
}

// Limits of an export.
const (
	maxField   = 1 << 20
	maxColumns = 256
)

// Columns are those of an export; a number of -1 says that there is none.
type Columns struct{ ID, Disposition, Requester, Template, Certificate, Request int }

// ReadExport calls do with each row that has a certificate, and returns how many have none. An error names the line.
func ReadExport(r io.Reader, do func(Entry) error) (without int, err error) {
	text, err := decodeText(r)
	if err != nil {
		return 0, err
	}
	rows := csv.NewReader(text)
	rows.FieldsPerRecord, rows.LazyQuotes, rows.ReuseRecord = -1, true, true
	heading, err := rows.Read()
	if err != nil {
		return 0, fmt.Errorf("the export has no heading: %w", err)
	}
	if len(heading) > maxColumns {
		return 0, fmt.Errorf("the export has %d columns, at most %d are read", len(heading), maxColumns)
	}
	columns := columnsByName(heading)
	for {
		record, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return without, nil
		}
		if err != nil {
			return without, fmt.Errorf("the export: %w", err)
		}
		line, _ := rows.FieldPos(0)
		if len(record) == 1 { // certutil ends with a line of its own
			continue
		}
		columns.byContent(record)
		e, err := columns.entry(record)
		if err != nil {
			return without, fmt.Errorf("the export, line %d: %w", line, err)
		}
		if e.Certificate == nil {
			without++
			continue
		}
		e.Line = line
		if err := do(*e); err != nil {
			return without, err
		}
	}
}

// decodeText takes UTF-8, and the UTF-16 that PowerShell redirects into files.
func decodeText(r io.Reader) (io.Reader, error) {
	var mark [2]byte
	n, err := io.ReadFull(r, mark[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case n == 2 && mark == [2]byte{0xff, 0xfe}:
		return &utf16Reader{r: r}, nil
	case n == 2 && mark == [2]byte{0xef, 0xbb}: // of UTF-8; its third octet follows
		var third [1]byte
		if _, err := io.ReadFull(r, third[:]); err != nil {
			return nil, err
		}
		return r, nil
	}
	return io.MultiReader(bytes.NewReader(mark[:n]), r), nil
}

// utf16Reader turns little-endian UTF-16 into UTF-8.
type utf16Reader struct {
	r    io.Reader
	out  []byte
	rest []byte // an odd octet, or half of a pair
	err  error
}

func (u *utf16Reader) Read(p []byte) (int, error) {
	for len(u.out) == 0 && u.err == nil {
		buffer := make([]byte, 8192)
		n, err := u.r.Read(buffer)
		u.err = err
		raw := append(u.rest, buffer[:n]...)
		units := make([]uint16, 0, len(raw)/2)
		for i := 0; i+1 < len(raw); i += 2 {
			units = append(units, uint16(raw[i])|uint16(raw[i+1])<<8)
		}
		keep := len(raw) % 2
		if k := len(units); err == nil && k > 0 && utf16.IsSurrogate(rune(units[k-1])) && units[k-1] < 0xdc00 {
			units, keep = units[:k-1], keep+2
		}
		u.rest = bytes.Clone(raw[len(raw)-keep:])
		u.out = []byte(string(utf16.Decode(units)))
	}
	n := copy(p, u.out)
	if u.out = u.out[n:]; n == 0 {
		return 0, u.err
	}
	return n, nil
}

// columnsByName finds columns by their English headings, and by the names that -out has for them.
func columnsByName(heading []string) *Columns {
	c := &Columns{-1, -1, -1, -1, -1, -1}
	for i, h := range heading {
		switch strings.ToLower(strings.TrimSpace(h)) {
		case "request id", "issued request id", "requestid":
			c.ID = i
		case "request disposition", "request.disposition", "disposition":
			c.Disposition = i
		case "requester name", "requestername", "request.requestername":
			c.Requester = i
		case "certificate template", "certificatetemplate":
			c.Template = i
		case "binary certificate", "rawcertificate":
			c.Certificate = i
		case "binary request", "rawrequest", "request.rawrequest":
			c.Request = i
		}
	}
	return c
}

// byContent finds columns whose heading is in another language.
func (c *Columns) byContent(record []string) {
	for i, field := range record {
		switch {
		case c.Requester < 0 && strings.Count(field, `\`) == 1 && !strings.ContainsAny(field, " \n=,") && i != c.Template:
			c.Requester = i
		case c.Certificate < 0 && len(field) > 400 && i != c.Request:
			if der, err := binary(field); err == nil {
				if _, err := x509.ParseCertificate(der); err == nil {
					c.Certificate = i
				}
			}
		}
	}
}

func (c *Columns) entry(record []string) (*Entry, error) {
	get := func(i int) (string, error) {
		if i < 0 || i >= len(record) || record[i] == "EMPTY" {
			return "", nil
		}
		if len(record[i]) > maxField {
			return "", fmt.Errorf("column %d has more than %d octets", i+1, maxField)
		}
		return strings.TrimSpace(record[i]), nil
	}
	var fields [6]string
	for i, column := range []int{c.ID, c.Disposition, c.Requester, c.Template, c.Certificate, c.Request} {
		var err error
		if fields[i], err = get(column); err != nil {
			return nil, err
		}
	}
	e := &Entry{Requester: strings.Clone(fields[2]), Template: strings.Clone(fields[3]), RequestID: number(fields[0]), Disposition: int(number(fields[1]))}
	if fields[4] == "" {
		return e, nil
	}
	der, err := binary(fields[4])
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if e.Certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if fields[5] != "" {
		if e.Request, err = binary(fields[5]); err != nil {
			return nil, fmt.Errorf("the request: %w", err)
		}
	}
	return e, nil
}

// number reads the first word of what certutil prints: 20 -- Issued, 0x14 (20), 1,234.
func number(s string) int64 {
	word, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	n, err := strconv.ParseInt(strings.NewReplacer(",", "", ".", "", "\u00a0", "").Replace(word), 0, 64)
	if err != nil {
		return 0
	}
	return n
}

// binary reads base64, with PEM lines around it or without.
func binary(s string) ([]byte, error) {
	if block, _ := pem.Decode([]byte(strings.ReplaceAll(s, "\r", ""))); block != nil {
		return block.Bytes, nil
	}
	return base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
}
