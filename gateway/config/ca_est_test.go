package config_test

import (
	"strings"
	"testing"
)

func TestAnESTServerInTheFile(t *testing.T) {
	good := "driver: est\nest: {url: \"https://est\", root: r.pem, user: gateway, password: {env: P}}"
	complaints(t, map[string][2]string{
		"a password":         {good, ""},
		"a certificate":      {strings.Replace(good, "user: gateway, password: {env: P}", "certificate: c.pem, key: c.key", 1), ""},
		"plain HTTP":         {strings.Replace(good, "https:", "http:", 1), "est.url"},
		"nothing":            {strings.Replace(good, "user: gateway, password: {env: P}", "label: x", 1), "TLS client"},
		"half a password":    {strings.Replace(good, ", password: {env: P}", "", 1), "go together"},
		"half a certificate": {strings.Replace(good, "user:", "key: c.key, user:", 1), "go together"},
	})
}
