package config_test

import (
	"strings"
	"testing"
)

func TestSCEP(t *testing.T) {
	good := `driver: scep, scep: {url: "http://ca/scep", root: r.pem, certificate: c, key: k, passphrase: {env: A}}`
	if _, err := load(t, foreignCA(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"a query":            {strings.Replace(good, "/scep\"", "/scep?x=y\"", 1), "cas[0].scep.url"},
		"no root":            {strings.Replace(good, "root: r.pem, ", "", 1), "cas[0].scep.root"},
		"no key":             {strings.Replace(good, "key: k, ", "", 1), "registration authority"},
		"a key in the clear": {strings.Replace(good, ", passphrase: {env: A}", "", 1), "cas[0].scep.passphrase"},
		"its own identity":   {"identity: ca, " + good, "does not hold"},
	} {
		if _, err := load(t, foreignCA(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
