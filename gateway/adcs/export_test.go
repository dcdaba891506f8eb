package adcs_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/adcs"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// export writes rows as certutil does: a certificate is base64 in lines of 64, in quotes.
func export(heading string, rows ...string) string {
	return heading + "\r\n" + strings.Join(rows, "\r\n") + "\r\nCertUtil: -view command completed successfully.\r\n"
}

func lines(der []byte) string {
	text, out := base64.StdEncoding.EncodeToString(der), "-----BEGIN CERTIFICATE-----\r\n"
	for len(text) > 64 {
		out, text = out+text[:64]+"\r\n", text[64:]
	}
	return out + text + "\r\n-----END CERTIFICATE-----\r\n"
}

func utf16le(s string) string {
	out := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return string(out)
}

func read(text string) (list []adcs.Entry, without int, err error) {
	without, err = adcs.ReadExport(strings.NewReader(text), func(e adcs.Entry) error { list = append(list, e); return nil })
	return list, without, err
}

func TestExportsAreReadInEveryLanguage(t *testing.T) {
	_, cert := testpki.Agent(t, "Alice", time.Now(), time.Now().AddDate(1, 0, 0))
	row := fmt.Sprintf(`"%%s","20 -- Issued","CORP\alice","1.3.6.1.4.1.311.21.8.1.2 ""User""","%s","%s"`, base64.StdEncoding.EncodeToString([]byte("a request")), lines(cert.Raw))
	failed := `"9","31 -- Denied","CORP\bob","User","EMPTY","EMPTY"`
	english := export(`"Issued Request ID","Request Disposition","Requester Name","Certificate Template","Binary Request","Binary Certificate"`, fmt.Sprintf(row, "7"), failed, fmt.Sprintf(row, "0x8 (8)"))
	german := export(`"Ausgestellte Anforderungs-ID","Anforderungsdisposition","Antragstellername","Zertifikatvorlage","Binäre Anforderung","Binäres Zertifikat 🔏"`, fmt.Sprintf(row, "7"), failed)
	for name, c := range map[string]struct {
		text   string
		id     int64
		rows   int
		named  bool
		unsure bool
	}{"english": {english, 7, 2, true, false}, "UTF-16": {utf16le(english), 7, 2, true, false}, "UTF-8 with a mark": {"\xef\xbb\xbf" + english, 0, 2, true, true}, "german": {utf16le(german), 0, 1, false, false}} {
		t.Run(name, func(t *testing.T) {
			list, without, err := read(c.text)
			if err != nil || len(list) != c.rows || without != 1 {
				t.Fatalf("%+v, %d without, %v", list, without, err)
			}
			e := list[0]
			if !e.Certificate.Equal(cert) || e.Requester != `CORP\alice` || !c.unsure && e.RequestID != c.id || c.named && (e.Disposition != 20 || string(e.Request) != "a request" || !strings.HasPrefix(e.Template, "1.3.6")) {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestDamagedExportsAreErrors(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":        "",
		"no certificate": export(`"Requester Name","Binary Certificate"`, `"CORP\alice","bm90IGEgY2VydGlmaWNhdGU="`),
		"no base64":      export(`"Requester Name","Binary Certificate"`, `"CORP\alice","***"`),
		"huge":           export(`"Requester Name","Binary Certificate"`, `"CORP\alice","`+strings.Repeat("A", 2<<20)+`"`),
		"many columns":   strings.Repeat("a,", 1000) + "\n",
	} {
		if list, _, err := read(text); err == nil {
			t.Errorf("%s: %+v", name, list)
		}
	}
}

func FuzzReadExport(f *testing.F) {
	f.Add([]byte(export(`"Requester Name","Binary Certificate"`, `"CORP\alice","bm90"`)))
	f.Add([]byte(utf16le(`"Request ID"`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = adcs.ReadExport(strings.NewReader(string(data)), func(e adcs.Entry) error {
			_, _ = adcs.SIDOf(e.Certificate), adcs.UPNsOf(e.Certificate)
			return nil
		})
	})
}
