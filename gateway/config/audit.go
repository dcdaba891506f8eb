package config

import (
	"net/url"

	"github.com/enrollgate/enrollgate/gateway/audit/witness"
	"golang.org/x/mod/sumdb/note"
)

// Audit is who watches over the audit log, and over whose log this gateway watches.
type Audit struct {
	Witnesses  []WitnessAt `yaml:"witnesses"`   // they cosign each checkpoint of the audit log
	WitnessFor []string    `yaml:"witness_for"` // keys of logs that this gateway cosigns, as audit checkpoint prints them
}

// WitnessAt is another instance, or any witness of C2SP tlog-witness.
type WitnessAt struct {
	URL    string `yaml:"url"`
	Key    string `yaml:"key"`     // as audit witness prints it
	CAFile string `yaml:"ca_file"` // that its TLS certificate is checked with; default: the system's
}

func (a Audit) check(need needs) {
	for i, w := range a.Witnesses {
		u, err := url.Parse(w.URL)
		need(err == nil && u.Scheme == "https" && u.Host != "", "audit.witnesses[%d].url: %q is not https://HOST/PATH", i, w.URL)
		_, err = witness.NewVerifier(w.Key)
		need(err == nil, "audit.witnesses[%d].key: %v; enrollgate audit witness prints it on the other instance", i, err)
	}
	for i, key := range a.WitnessFor {
		_, err := note.NewVerifier(key)
		need(err == nil, "audit.witness_for[%d]: %v; enrollgate audit checkpoint prints it on the other instance", i, err)
	}
}
