// Package deps keeps modules in go.mod until their users exist. Temporary.
package deps

import (
	_ "github.com/fullsailor/pkcs7"
	_ "github.com/go-ldap/ldap/v3"
	_ "github.com/goccy/go-yaml"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/jcmturner/gokrb5/v8/client"
	_ "github.com/jcmturner/gokrb5/v8/service"
	_ "github.com/jcmturner/gokrb5/v8/spnego"
	_ "github.com/pressly/goose/v3"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/sirupsen/logrus"
	_ "github.com/spf13/cobra"
	_ "github.com/youmark/pkcs8"
	_ "golang.org/x/crypto/cryptobyte"
	_ "golang.org/x/sync/singleflight"
	_ "modernc.org/sqlite"
	_ "pgregory.net/rapid"
	_ "software.sslmate.com/src/go-pkcs12"
)
