package config

// HVCA is an account of GlobalSign Atlas.
type HVCA struct {
	Connection `yaml:",inline"`
	APIKey     string   `yaml:"api_key"`
	APISecret  Secret   `yaml:"api_secret"` // read anew each time
	PublicKey  string   `yaml:"public_key"` // request (default) or bare
	Extensions []string `yaml:"extensions"`
	Profile    []string `yaml:"from_profile"`
}

func (h *HVCA) paths() []*string { return append(h.Connection.paths(), &h.APISecret.File) }

func (h *HVCA) check(path string, need func(bool, string, ...any)) {
	h.Connection.check(path, need)
	need(h.Certificate != "", "%s: certificate and key are missing: those of the TLS client that GlobalSign has given out with the API key", path)
	need(h.APIKey != "" && h.APISecret.Set(), "%s: api_key and api_secret (file or env) are needed", path)
	need(h.PublicKey == "" || h.PublicKey == "request" || h.PublicKey == "bare", "%s.public_key: %q is neither request nor bare", path, h.PublicKey)
}
