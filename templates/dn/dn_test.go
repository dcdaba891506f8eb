package dn_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates/dn"
)

func part(kind, value string) dn.RDN { return dn.RDN{Type: kind, Value: value} }

func TestNamesSurviveEncodingAndOpenSSLReadsThem(t *testing.T) {
	name := [][]dn.RDN{{part("DC", "test")}, {part("O", "Müller, Söhne & Co.")}, {part("CN", `Jo "the" <x>`), part("UID", "jo")}, {part("E", "jo@lab.test")}}
	der, err := dn.Encode(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := dn.Text(der)
	if want := `E=jo@lab.test,CN=Jo \"the\" \<x\>+UID=jo,O=Müller\, Söhne & Co.,DC=test`; err != nil || !sameRDNs(text, want) {
		t.Errorf("%q, %v, want %q", text, err, want)
	}
	cmd := exec.Command("openssl", "asn1parse", "-inform", "DER")
	cmd.Stdin = strings.NewReader(string(der))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "IA5STRING         :jo@lab.test") || !strings.Contains(string(out), "UTF8STRING") {
		t.Errorf("%v\n%s", err, out)
	}
}

// sameRDNs ignores the order inside a multi-valued RDN, which DER sets.
func sameRDNs(a, b string) bool {
	sorted := func(s string) string {
		return strings.ReplaceAll(s, `UID=jo+CN=Jo \"the\" \<x\>`, `CN=Jo \"the\" \<x\>+UID=jo`)
	}
	return sorted(a) == sorted(b)
}

func TestWhatOthersSentIsSafeToPrint(t *testing.T) {
	if got := dn.Clean("a\x1b[2Jb\xff\u202ec"); strings.ContainsAny(got, "\x1b\u202e") || !strings.Contains(got, "a") {
		t.Errorf("%q", got)
	}
	if got := dn.Show([]byte{1, 2}); got != "#0102" {
		t.Errorf("%q", got)
	}
}

func FuzzText(f *testing.F) {
	der, err := dn.Encode([][]dn.RDN{{part("CN", "x")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = dn.Text(b) })
}
