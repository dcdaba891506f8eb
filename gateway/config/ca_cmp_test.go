package config_test

import (
	"strings"
	"testing"
)

// foreignCA is the minimal file with another CA.
func foreignCA(text string) string {
	return minimal[:strings.Index(minimal, "cas:")] + "cas: [{name: CA, " + text + "}]\n"
}

func TestCMP(t *testing.T) {
	good := `driver: cmp, cmp: {url: "http://ca/pkix/", root: r.pem, certificate: c, key: k, passphrase: {env: A}}`
	c, err := load(t, foreignCA(good))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.CAs[0].CMP; !strings.HasPrefix(got.Root, "/") || !strings.HasPrefix(got.Key, "/") {
		t.Errorf("%+v", got)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"no protection":      {`driver: cmp, cmp: {url: "http://ca/", root: r.pem}`, "either certificate and key, or secret"},
		"two protections":    {strings.Replace(good, "{env: A}", "{env: A}, secret: {env: B}", 1), "either certificate and key, or secret"},
		"a key in the clear": {strings.Replace(good, ", passphrase: {env: A}", "", 1), "cas[0].cmp.passphrase"},
		"no root":            {strings.Replace(good, "root: r.pem, ", "", 1), "cas[0].cmp.root"},
		"another protocol":   {strings.Replace(good, "http:", "ldap:", 1), "cas[0].cmp.url"},
		"its own identity":   {"identity: ca, " + good, "does not hold"},
		"ignoring in cr":     {strings.Replace(good, "root:", "ignore: [1.2], root:", 1), "for pkcs10 only"},
	} {
		if _, err := load(t, foreignCA(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
