package config

// EJBCA is Keyfactor's EJBCA, by its REST interface.
type EJBCA struct {
	Connection         `yaml:",inline"`
	CA                 string   `yaml:"ca"`
	CertificateProfile string   `yaml:"certificate_profile"`
	EndEntityProfile   string   `yaml:"end_entity_profile"`
	Names              string   `yaml:"names"` // end_entity (default) or request
	Extensions         []string `yaml:"extensions"`
	Profile            []string `yaml:"from_profile"`
	End                *bool    `yaml:"end"` // false: the profile decides when certificates end
}

func (e *EJBCA) paths() []*string { return e.Connection.paths() }

func (e *EJBCA) check(path string, need func(bool, string, ...any)) {
	e.Connection.check(path, need)
	need(e.Certificate != "", "%s: certificate and key are missing; EJBCA knows the gateway by its TLS client certificate", path)
	need(e.CA != "" && e.CertificateProfile != "" && e.EndEntityProfile != "", "%s: ca, certificate_profile and end_entity_profile are needed, as EJBCA calls them", path)
	need(e.Names == "" || e.Names == "end_entity" || e.Names == "request", "%s.names: %q is neither end_entity nor request", path, e.Names)
	need(e.Names != "request" || len(e.Extensions) == 0, "%s.extensions: there is no end entity that could have them with names: request", path)
}
