package config_test

import (
	"strings"
	"testing"
)

// withCA is the minimal file with a foreign CA in place of the embedded one.
func withCA(block string) string {
	return strings.Split(minimal, "cas:")[0] + "cas:\n  - name: CA\n    " + strings.ReplaceAll(block, "\n", "\n    ") + "\n"
}

// complaints loads files with a foreign CA, each with what is to be said about it; nothing where it is right.
func complaints(t *testing.T, files map[string][2]string) {
	t.Helper()
	for name, c := range files {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, withCA(c[0]))
			if c[1] == "" && err != nil || c[1] != "" && (err == nil || !strings.Contains(err.Error(), c[1])) {
				t.Errorf("%v, want %q", err, c[1])
			}
		})
	}
}

func TestAVaultInTheFile(t *testing.T) {
	good := "driver: vault\nvault: {url: \"https://vault:8200\", root: r.pem, role: mail, token: {env: T}}"
	complaints(t, map[string][2]string{
		"all that is needed": {good, ""},
		"a login":            {strings.Replace(good, "token: {env: T}", "app_role: {role_id: r, secret_id: {env: S}}", 1), ""},
		"verbatim":           {strings.Replace(good, "role: mail", "sign: verbatim", 1), ""},
		"plain HTTP":         {strings.Replace(good, "https:", "http:", 1), "vault.url"},
		"no root":            {strings.Replace(good, "root: r.pem, ", "", 1), "vault.root"},
		"no role":            {strings.Replace(good, "role: mail, ", "", 1), "vault.role"},
		"no token":           {strings.Replace(good, ", token: {env: T}", "", 1), "either token"},
		"two ways in":        {strings.Replace(good, "token:", "app_role: {role_id: r, secret_id: {env: S}}, token:", 1), "either token"},
		"half a login":       {strings.Replace(good, "token: {env: T}", "app_role: {role_id: r}", 1), "role_id and secret_id"},
		"another way":        {strings.Replace(good, "role: mail", "role: mail, sign: blindly", 1), "neither role nor verbatim"},
		"half a certificate": {strings.Replace(good, "role: mail", "role: mail, certificate: c.pem", 1), "go together"},
		"a negative timeout": {strings.Replace(good, "role: mail", "role: mail, timeout: -1s", 1), "negative"},
		"a word too much":    {strings.Replace(good, "role: mail", "role: mail, rolle: x", 1), "rolle"},
	})
}
