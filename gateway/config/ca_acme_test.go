package config_test

import (
	"strings"
	"testing"
)

func TestACME(t *testing.T) {
	good := `driver: acme, acme: {directory: "https://ca/dir", root: r.pem, key: k, passphrase: {env: A}, key_id: x, mac_key: {env: B}, contact: ["mailto:pki@corp.example"]}`
	if _, err := load(t, foreignCA(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"plain HTTP":         {strings.Replace(good, "https:", "http:", 1), "cas[0].acme.directory"},
		"no root":            {strings.Replace(good, "root: r.pem, ", "", 1), "cas[0].acme.root"},
		"half a binding":     {strings.Replace(good, "key_id: x, ", "", 1), "go together"},
		"a bare address":     {strings.Replace(good, "mailto:", "", 1), "cas[0].acme.contact"},
		"a key in the clear": {strings.Replace(good, "passphrase: {env: A}, ", "", 1), "cas[0].acme.passphrase"},
		"its own identity":   {"identity: ca, " + good, "does not hold"},
	} {
		if _, err := load(t, foreignCA(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
