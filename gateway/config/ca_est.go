package config

// EST is a CA that speaks Enrollment over Secure Transport (RFC 7030).
type EST struct {
	Connection `yaml:",inline"`
	Label      string   `yaml:"label"`
	User       string   `yaml:"user"`
	Password   Secret   `yaml:"password"` // read anew each time
	Profile    []string `yaml:"from_profile"`
}

func (e *EST) paths() []*string { return append(e.Connection.paths(), &e.Password.File) }

func (e *EST) check(path string, need func(bool, string, ...any)) {
	e.Connection.check(path, need)
	need(e.Certificate != "" || e.User != "", "%s: certificate and key of a TLS client, or user and password, or all of them are needed", path)
	need((e.User != "") == e.Password.Set(), "%s: user and password (file or env) go together", path)
}
