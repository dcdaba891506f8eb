package config

import (
	"net/url"
	"strings"
)

// check refuses a password in the address, which is in the configuration for all to read, and a server over the network that
// is not proven: who answers in its place would be told every request.
func (d Database) check(need func(ok bool, format string, args ...any)) {
	if d.URL == "" {
		need(!d.Password.Set(), "database.password: is for a PostgreSQL server, and database.url is missing")
		return
	}
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		need(false, "database.url: it is not postgres://USER@HOST[:PORT]/DATABASE?sslmode=verify-full&sslrootcert=FILE")
		return
	}
	q := u.Query()
	_, has := u.User.Password()
	need(!has && !q.Has("password") && !q.Has("sslpassword"), "database.url: it has a password; name a file or a variable under database.password")
	host := u.Hostname()
	if q.Has("host") {
		host = q.Get("host")
	}
	local := host == "" || strings.HasPrefix(host, "/") || host == "localhost" || host == "127.0.0.1" || host == "::1"
	need(local || q.Get("sslmode") == "verify-full", "database.url: %s is reached over the network: add sslmode=verify-full, and sslrootcert=FILE where its certificate is not from a public CA", host)
}
