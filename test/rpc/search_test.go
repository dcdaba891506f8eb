package rpc

import (
	"slices"
	"strings"
	"testing"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	"github.com/oiweiwei/go-msrpc/msrpc/dcom/csra"
)

// TestManagersFindCertificatesAsCertutilGetkeyDoes: by what is in the certificate.
func TestManagersFindCertificatesAsCertutilGetkeyDoes(t *testing.T) {
	w := startManaged(t, 1)
	one, other := enrollOne(t, w, dialD2(t, "alice", dcerpc.WithSeal())), enrollOne(t, w, dialD2(t, "helpdesk", dcerpc.WithSeal()))
	carol := dialAdmin(t, "carol", dcerpc.WithSeal())
	const commonName, upn, hash, keyID, serial = 0x2016, 0x2010, 0x2002, 0x200a, 0x2006
	columns := []uint32{0x1000, commonName, upn, hash, keyID, serial}
	rows, _ := openView(t, carol, 0, 100, columns)
	closeView(t, carol)
	if len(rows) != 2 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		for _, column := range columns[1:] {
			value := row.columns[column]
			if len(value) == 0 {
				t.Fatalf("request %d: column 0x%x is empty", row.id, column)
			}
			upper := utf16Text(strings.ToUpper(text(value)))
			found, total := openView(t, carol, 0, 100, columns, &csra.CertViewRestriction{ColumnIndex: column, SeekOperator: 1, Value: upper})
			closeView(t, carol)
			if total != 1 || !slices.Equal(ids(found), []uint32{row.id}) {
				t.Errorf("column 0x%x is %q: %v of %d, want %d", column, text(value), ids(found), total, row.id)
			}
		}
	}
	if one.ID == other.ID {
		t.Error("one request")
	}
}
