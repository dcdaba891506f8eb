package cmp

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// The files in testdata are answers of OpenSSL 3.0's CMP server.
func FuzzMessage(f *testing.F) {
	files, err := filepath.Glob("testdata/*.der")
	if err != nil || len(files) < 5 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		der, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := parseMessage(der); err != nil {
			f.Errorf("%s: %v", file, err)
		}
		f.Add(der)
	}
	_, root := testpki.Agent(f, "Root", time.Now(), time.Now().Add(time.Hour))
	ca, err := New(Options{Name: "CMP", URL: "http://ca", Roots: []*x509.Certificate{root}, Secret: []byte("secret")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		m, err := parseMessage(der)
		if err != nil {
			return
		}
		if err := ca.verify(m); err == nil {
			t.Error("a message that nobody has protected is believed")
		}
		say := func(info statusInfo) {
			if strings.ContainsFunc(info.text, unicode.IsControl) {
				t.Errorf("%q has control characters", info.text)
			}
		}
		if r, err := parseResponse(m.content); err == nil {
			say(r.status)
		}
		if info, err := parseError(m.content); err == nil {
			say(info)
		}
		if info, err := parseRevocation(m.content); err == nil {
			say(info)
		}
		_, _, _ = parsePollResponse(m.content)
	})
}

func TestNegativeAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		info   statusInfo
		kind   int
		proven bool
		want   string
	}{
		"the template is not wanted":    {statusInfo{2, "no", 1 << 19}, bodyCP, true, "refused"},
		"rejected without a reason":     {statusInfo{2, "", 0}, bodyCP, true, "refused"},
		"an error about the template":   {statusInfo{2, "", 1 << 19}, bodyError, true, "refused"},
		"who asks is not known":         {statusInfo{2, "", 1 << 20}, bodyError, true, "not issued"},
		"who asks may not":              {statusInfo{2, "", 1 << 23}, bodyCP, true, "not issued"},
		"the message could not be read": {statusInfo{2, "", 1 << 2}, bodyError, true, "not issued"},
		"the transaction was there":     {statusInfo{2, "", 1 << 21}, bodyError, true, "unknown"},
		"the key was there":             {statusInfo{2, "", 1<<26 | 1<<2}, bodyCP, true, "unknown"},
		"something broke":               {statusInfo{2, "", 1 << 25}, bodyError, true, "unknown"},
		"anybody could have said it":    {statusInfo{2, "", 1 << 19}, bodyError, false, "unknown"},
		"an error that accepts":         {statusInfo{0, "", 0}, bodyError, true, "unknown"},
	} {
		got := "unknown"
		switch r, err := outcome(&statusError{c.info, c.kind}, c.proven); {
		case err == nil && r.Reason != "":
			got = "refused"
		case upstream.IsNotIssued(err):
			got = "not issued"
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
