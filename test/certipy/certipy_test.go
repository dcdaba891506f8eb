// Package certipy compares what enrollgate templates lint finds with what Certipy (github.com/ly4k/Certipy) finds in the
// lab's forest: always with what Certipy said once, and with Certipy itself where its source is at hand.
package certipy

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/risk"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/world"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
)

var update = flag.Bool("update", false, "record the forest and what Certipy says of it anew")

// accounts are whose rights Certipy looks at: by way of Domain Users, of a nested group, and of the group that may change a
// template.
var accounts = []string{"alice", "erin", "helpdesk"}

// recording is what Certipy said for one account.
type recording struct {
	Revision  string                       `json:"certipy_revision"`
	SIDs      []security.SID               `json:"sids"`      // of the account
	Templates map[string]map[string]string `json:"templates"` // rule: its text, by template
}

// rules are what both look for in templates.
var rules = []string{"ESC1", "ESC2", "ESC3", "ESC4", "ESC9", "ESC13", "ESC15", "ESC17"}

// TestCertipySaidTheSame needs neither the lab nor Certipy.
func TestCertipySaidTheSame(t *testing.T) {
	d := recordedForest(t)
	for _, account := range accounts {
		text, err := os.ReadFile(filepath.Join("testdata", account+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var r recording
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		compare(t, account, d, r)
	}
}

func recordedForest(t *testing.T) *templates.Snapshot {
	t.Helper()
	text, err := os.ReadFile("testdata/directory.json")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "directory.json") // a file that others may write is not used, and git keeps no modes
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	d, err := ldapsync.New(ldapsync.Config{Servers: []string{"ldap://dc1.lab.test"}, StateFile: file,
		Auth: ldapsync.Auth{Method: ldapsync.GSSAPI, Principal: "svc-enroll", Keytab: "none", Krb5Conf: "none"}}, log)
	if err != nil {
		t.Fatal(err)
	}
	if d.Snapshot() == nil {
		t.Fatal("testdata/directory.json is not used")
	}
	return d.Snapshot()
}

// TestCertipySaysTheSame runs Certipy: CERTIPY names the folder with its package.
func TestCertipySaysTheSame(t *testing.T) {
	source := os.Getenv("CERTIPY")
	if source == "" {
		t.Skip("needs the source of Certipy, which no package brings: git clone it, apt-get install python3-impacket python3-ldap3 " +
			"python3-dnspython python3-bs4 python3-httpx python3-argcomplete, and name its folder in CERTIPY")
	}
	w := world.StartChanged(t, "", func(c *config.Config) { c.Listen.HTTPS, c.Listen.HTTP = "off", "off" })
	for _, account := range accounts {
		subject, err := w.Forest.SubjectByName(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		r := run(t, source, account)
		r.SIDs = append(slices.Clone(subject.Groups), subject.SID)
		slices.Sort(r.SIDs)
		compare(t, account, w.Directory.Snapshot(), r)
		if *update {
			text, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			write(t, account+".json", append(text, '\n'))
		}
	}
	if *update {
		recordForest(t, filepath.Join(w.Config.Data, "directory.json"))
	}
}

func recordForest(t *testing.T, file string) {
	t.Helper()
	for range 100 {
		if text, err := os.ReadFile(file); err == nil {
			write(t, "directory.json", text)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("the gateway does not save %s", file)
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("testdata", name), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// run has Certipy look at the forest as an account.
func run(t *testing.T, source, account string) recording {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "find.py", source, "-u", account+"@lab.test", "-p", world.Env("LAB_PASSWORD"),
		"-dc-ip", world.Env("LAB_IP"), "-target", world.Env("LAB_DC"), "-ldap-simple-auth", "-no-ldap-channel-binding", "-dc-only", "-vulnerable", "-json", "-output", out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	text, err := os.ReadFile(out + "_Certipy.json")
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Templates map[string]struct {
			Name            string            `json:"Template Name"`
			Vulnerabilities map[string]string `json:"[!] Vulnerabilities"`
		} `json:"Certificate Templates"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatal(err)
	}
	r := recording{Revision: os.Getenv("CERTIPY_REVISION"), Templates: map[string]map[string]string{}}
	for _, x := range said.Templates {
		r.Templates[x.Name] = x.Vulnerabilities
	}
	return r
}

// compare wants the same rules for the same templates. Two differences are of words: what is good for every purpose is an
// enrollment agent's certificate too, which Certipy lists under ESC3 and lint says in ESC2; and templates that take an
// agent's signature are remarks of Certipy's, and notes of lint's.
func compare(t *testing.T, account string, s *templates.Snapshot, r recording) {
	t.Helper()
	theirs, ours := map[string][]string{}, map[string][]string{}
	for template, found := range r.Templates {
		for rule := range found {
			if _, any := found["ESC2"]; slices.Contains(rules, rule) && !(rule == "ESC3" && any) {
				theirs[template] = append(theirs[template], rule)
			}
		}
		slices.Sort(theirs[template])
	}
	mine := security.NewToken(append(r.SIDs, security.Everyone, security.AuthenticatedUsers, security.BuiltinUsers)...)
	for _, f := range risk.Find(s, risk.Gateway{}, nil) {
		reaches := slices.ContainsFunc(f.Who, func(p risk.Principal) bool { return mine.Has(p.SID) })
		target := f.Rule == "ESC3" && f.Severity == risk.Note
		if f.Kind == risk.KindTemplate && reaches && !target && slices.Contains(rules, f.Rule) {
			ours[f.Object] = append(ours[f.Object], f.Rule)
		}
	}
	for template := range ours {
		slices.Sort(ours[template])
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("%s: Certipy has -, lint has +\n%s", account, diff)
	}
	if len(theirs) < 5 {
		t.Errorf("%s: Certipy found only %v", account, strings.TrimSpace(cmp.Diff(nil, theirs)))
	}
}
