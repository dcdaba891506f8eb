package config_test

import (
	"strings"
	"testing"
)

func TestADCS(t *testing.T) {
	good := "driver: adcs, adcs: {server: ca.corp.example, authority: CA, root: r.pem, principal: svc@CORP.EXAMPLE, keytab: k}"
	if _, err := load(t, foreignCA(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"an address":       {strings.Replace(good, "ca.corp.example", "\"ca:135\"", 1), "cas[0].adcs.server"},
		"no authority":     {strings.Replace(good, "authority: CA, ", "", 1), "cas[0].adcs.authority"},
		"no realm":         {strings.Replace(good, "svc@CORP.EXAMPLE", "svc", 1), "NAME@REALM"},
		"no root":          {strings.Replace(good, "root: r.pem, ", "", 1), "cas[0].adcs.root"},
		"its own identity": {"identity: ca, " + good, "does not hold"},
	} {
		if _, err := load(t, foreignCA(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
