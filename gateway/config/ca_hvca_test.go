package config_test

import (
	"strings"
	"testing"
)

func TestAnAtlasAccountInTheFile(t *testing.T) {
	good := "driver: hvca\nhvca: {url: \"https://emea.api.hvca.globalsign.com:8443/v2\", root: r.pem, certificate: c.pem, key: c.key, api_key: k, api_secret: {env: S}}"
	complaints(t, map[string][2]string{
		"all that is needed":    {good, ""},
		"bare keys":             {strings.Replace(good, "api_key", "public_key: bare, api_key", 1), ""},
		"keys of another kind":  {strings.Replace(good, "api_key", "public_key: naked, api_key", 1), "neither request nor bare"},
		"no client certificate": {strings.Replace(good, "certificate: c.pem, key: c.key, ", "", 1), "TLS client"},
		"no secret":             {strings.Replace(good, ", api_secret: {env: S}", "", 1), "api_secret"},
		"a query":               {strings.Replace(good, "/v2", "/v2?x=y", 1), "hvca.url"},
	})
}
