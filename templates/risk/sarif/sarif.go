// Package sarif writes findings in the Static Analysis Results Interchange Format, version 2.1.0, which code hosting
// services and pipelines read. Only the parts of it that findings need are here.
package sarif

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/enrollgate/enrollgate/templates/risk"
)

// Schema is where the standard's JSON schema lies.
const Schema = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

type log struct {
	Schema  string `json:"$schema"`
	Version string `json:"version"`
	Runs    []run  `json:"runs"`
}

type run struct {
	Tool    tool     `json:"tool"`
	Results []result `json:"results"`
}

type tool struct {
	Driver driver `json:"driver"`
}

type driver struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Rules   []rule `json:"rules"`
}

type text struct {
	Text string `json:"text"`
}

type rule struct {
	ID    string `json:"id"`
	Short text   `json:"shortDescription"`
	Full  text   `json:"fullDescription"`
	Help  text   `json:"help"`
}

// result is 3.27. The object is a logical location (3.33): templates have no file and no line.
type result struct {
	RuleID       string            `json:"ruleId"`
	RuleIndex    int               `json:"ruleIndex"`
	Level        string            `json:"level"`
	Message      text              `json:"message"`
	Locations    []location        `json:"locations"`
	Fingerprints map[string]string `json:"partialFingerprints"`
	Suppressions []suppression     `json:"suppressions"`
	Properties   map[string]any    `json:"properties"`
}

type location struct {
	Logical []logical `json:"logicalLocations"`
}

type logical struct {
	Name string `json:"name"`
	Full string `json:"fullyQualifiedName,omitempty"`
	Kind string `json:"kind"`
}

// suppression is 3.35: "external" says that it stands outside of what was looked at.
type suppression struct {
	Kind          string `json:"kind"`
	Status        string `json:"status"`
	Justification string `json:"justification"`
}

// Write encodes findings. An accepted one is there as suppressed, with who accepted it until when.
func Write(w io.Writer, version string, findings []risk.Finding) error {
	d := driver{Name: "enrollgate", Version: version, Rules: []rule{}}
	index := map[string]int{}
	for i, r := range risk.Rules() {
		index[r.Name] = i
		d.Rules = append(d.Rules, rule{ID: r.Name, Short: text{r.Title}, Full: text{r.Looks}, Help: text{r.Spec + " — " + r.Level}})
	}
	results := []result{}
	for _, f := range findings {
		r := result{RuleID: f.Rule, RuleIndex: index[f.Rule], Level: string(f.Severity), Message: text{message(&f)},
			Locations:    []location{{[]logical{{f.Object, f.DN, string(f.Kind)}}}},
			Fingerprints: map[string]string{"object/v1": f.Rule + " " + f.Object}, Suppressions: []suppression{}, Properties: map[string]any{"who": f.Who, "fix": f.Fix}}
		if a := f.Accepted; a != nil {
			r.Suppressions = append(r.Suppressions, suppression{"external", "accepted", fmt.Sprintf("%s, until %s: %s", a.By, a.LastDay(), a.Reason)})
		}
		results = append(results, r)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(log{Schema, "2.1.0", []run{{tool{d}, results}}})
}

func message(f *risk.Finding) string {
	who := ""
	if len(f.Who) > 0 {
		who = " " + risk.People(f.Who) + "."
	}
	return fmt.Sprintf("%s %q:%s %s Fix: %s.", f.Kind, f.Object, who, f.How, f.Fix)
}
