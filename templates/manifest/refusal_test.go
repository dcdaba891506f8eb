package manifest

import (
	"strings"
	"testing"
)

func TestMistakesAreRefusedWhereTheyStand(t *testing.T) {
	f := recorded(t)
	for name, tt := range map[string]struct{ text, want string }{
		"nothing":               {"# only a comment\n", "t.yaml:1:1: there is no template in it"},
		"syntax":                {"template: [a\n", "t.yaml:1:11: "},
		"no mapping":            {"- a\n", "t.yaml:1:1: want keys and values"},
		"no name":               {"validity: 1y\n", "the key template is missing"},
		"odd name":              {"template: ' a'\n", "t.yaml:1:11: template: "},
		"unknown key":           {"template: User\nvalidty: 1y\n", `t.yaml:2:1: unknown key "validty"`},
		"key twice":             {"template: User\nvalidity: 1y\nvalidity: 1y\n", "t.yaml:3:1: "},
		"no value":              {"template: User\nacl:\n", `t.yaml:2:6: acl: no value: write [] or "" to clear`},
		"anchor":                {"template: User\nflags: &x []\n", "t.yaml:2:8: flags: anchors"},
		"unknown flag":          {"template: User\nenrollment_flags:\n  - PEND_ALL\n", `t.yaml:3:5: enrollment_flags: msPKI-Enrollment-Flag has no flag "PEND_ALL": use INCLUDE_SYMMETRIC_ALGORITHMS, PEND_ALL_REQUESTS`},
		"flag of another":       {"template: User\nname_flags: [PEND_ALL_REQUESTS]\n", `t.yaml:2:14: name_flags: msPKI-Certificate-Name-Flag has no flag`},
		"flag twice":            {"template: User\nflags: [IS_CA, 0x80]\n", "t.yaml:2:16: "},
		"field too large":       {"template: User\nprivate_key_flags: [minimum CA version 16]\n", "is not a number below 16"},
		"duration":              {"template: User\nvalidity: 1m\n", `t.yaml:2:11: validity: "1m" is not a duration: write 1y`},
		"duration without unit": {"template: User\nvalidity: 90\n", "is not a duration"},
		"duration too long":     {"template: User\nrenewal: 99999999y\n", "longer than the directory can store"},
		"OID":                   {"template: User\nextended_key_usage:\n  - 1.2.3\n  - 1.2.x\n", `t.yaml:4:5: extended_key_usage: "1.2.x" is not an object identifier`},
		"OID twice":             {"template: User\nra_policies: [1.2.3, 1.2.3]\n", "in the list twice"},
		"own OID":               {"template: User\noid: forest\n", "t.yaml:2:6: oid: "},
		"key usage":             {"template: User\nkey_usage: [sign]\n", `unknown key usage "sign": use digitalSignature`},
		"key spec":              {"template: User\nkey_spec: both\n", "use exchange or signature"},
		"number":                {"template: User\nminimum_key_size: large\n", "not a whole number"},
		"list for one":          {"template: User\ndisplay_name: [a]\n", "want a single value"},
		"one for list":          {"template: User\nproviders: a\n", "want a list"},
		"version":               {"template: User\nversion: 4\n", `want "MAJOR.MINOR"`},
		"right":                 {"template: User\nacl:\n  - allow enrol for LAB\\Domain Users\n", `t.yaml:3:5: acl: unknown right "enrol": use enroll, autoenroll, full, read`},
		"principal":             {"template: User\nacl:\n  - allow read for LAB\\Nobody\n", `t.yaml:3:5: acl: there is no account or group "LAB\\Nobody"`},
		"owner":                 {"template: User\nowner: LAB\\Nobody\n", `t.yaml:2:1: owner: there is no account`},
		"entry":                 {"template: User\nacl: [Domain Users may enroll]\n", "want \"allow RIGHTS for PRINCIPAL\""},
		"SDDL":                  {"template: User\nacl: ['(A;;CR;;;DA)']\n", "is not a SID"},
		"inherited entry":       {"template: User\nacl: ['(A;ID;CR;;;S-1-1-0)']\n", "an inherited entry"},
		"octets of an entry":    {"template: User\nacl: ['hex:0900']\n", "ACE"},
		"property":              {"template: User\nra_properties: [a]\n", "want properties"},
		"backtick":              {"template: User\nra_properties: {a: 'b`c'}\n", "backtick"},
		"both syntaxes":         {"template: User\nra_application_policies: [1.2]\nra_properties: {a: b}\n", "t.yaml:3:1: ra_properties: the document sets the attribute mspki-ra-application-policies twice"},
		"raw and readable":      {"template: User\nvalidity: 1y\nattributes: {pKIExpirationPeriod: [a]}\n", "twice"},
		"directory's own":       {"template: User\nattributes: {objectGUID: [a]}\n", "t.yaml:2:14: attribute objectGUID belongs to the directory"},
		"attribute name":        {"template: User\nattributes: {'a;binary': [a]}\n", "is not the name of an attribute"},
		"base64":                {"template: User\nattributes: {info: ['base64:?']}\n", "is not base64"},
		"CA":                    {"template: User\noffered_by:\n  - Other CA\n", `t.yaml:3:5: the forest has no enrollment service "Other CA"`},
		"inherit":               {"template: User\nacl_inherits: perhaps\n", "want true or false"},
		"template twice":        {"template: User\n---\ntemplate: user\n", "t.yaml:3:1: t.yaml has the template"},
		"new, incomplete":       {"template: New\nvalidity: 1y\n", `t.yaml:1:1: the forest has no template "New", and to make one these keys are missing: display_name, schema,`},
		"would not parse":       {"template: LabV4\nra_properties:\n  msPKI-New: x\n", `t.yaml:2:1: the result would not be a template that can be served`},
		"OID of another":        {"template: New\noid: " + string(f.Template("User").Attributes[attrOID][0]) + "\n" + minimal, `t.yaml:2:1: 1.3.6`},
		"without its OID":       {"template: LabV4\noid: ''\n", "missing in a schema 4 template"},
		"same new OID": {"template: A\noid: 1.2.3\n" + minimal + "---\ntemplate: B\noid: 1.2.3\n" + minimal,
			`is the OID of the template "A" in these files`},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := Parse("t.yaml", []byte(tt.text), f.sids)
			if err == nil {
				_, err = NewPlan(f, all, noFresh)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	f := recorded(t)
	_, err := Parse("t.yaml", []byte("template: User\nvalidity: x\nflags: [Y]\nother: 1\n"), f.sids)
	if err == nil || strings.Count(err.Error(), "t.yaml:") != 3 {
		t.Error(err)
	}
}
