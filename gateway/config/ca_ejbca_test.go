package config_test

import (
	"strings"
	"testing"
)

func TestAnEJBCAInTheFile(t *testing.T) {
	good := "driver: ejbca\nejbca: {url: \"https://ejbca:8443\", root: r.pem, certificate: c.pem, key: c.key, ca: Mail CA, certificate_profile: Mail, end_entity_profile: Users}"
	complaints(t, map[string][2]string{
		"all that is needed":         {good, ""},
		"names of requests":          {strings.Replace(good, "ca: Mail", "names: request, end: false, ca: Mail", 1), ""},
		"names of nobody":            {strings.Replace(good, "ca: Mail", "names: nobody, ca: Mail", 1), "neither end_entity nor request"},
		"extensions of nobody":       {strings.Replace(good, "ca: Mail", "names: request, extensions: [1.2.3], ca: Mail", 1), "ejbca.extensions"},
		"no client certificate":      {strings.Replace(good, "certificate: c.pem, key: c.key, ", "", 1), "TLS client certificate"},
		"no profile":                 {strings.Replace(good, "certificate_profile: Mail, ", "", 1), "certificate_profile"},
		"no CA":                      {strings.Replace(good, "ca: Mail CA, ", "", 1), "as EJBCA calls them"},
		"an address without a host":  {strings.Replace(good, "https://ejbca:8443", "https://", 1), "ejbca.url"},
		"an address with a password": {strings.Replace(good, "https://ejbca", "https://a:b@ejbca", 1), "ejbca.url"},
	})
}
