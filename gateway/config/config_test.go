package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/config"
)

const minimal = `
public_name: enroll.corp.example
tls: {certificate: tls.pem, key: tls.key}
kerberos: {keytab: k}
directory: {servers: ["ldap://dc1.corp.example"], bind: {principal: svc}}
cas: [{name: CA, local: {certificate: ca.pem, key: ca.key, passphrase: {env: PASS}}}]
`

func load(t testing.TB, text string) (*config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "enrollgate.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Load(path)
}

func TestDefaultsWorkAndPathsAreRelativeToTheFile(t *testing.T) {
	c, err := load(t, minimal)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.HTTPS != ":443" || c.Directory.Bind.Method != "gssapi" || c.Escrow.Grace != 14*24*time.Hour || c.Policy.UpdateHours != 8 {
		t.Errorf("%+v", c)
	}
	if !filepath.IsAbs(c.TLS.Certificate) || c.Directory.Bind.Keytab != c.Kerberos.Keytab || c.Secret.File != "/var/lib/enrollgate/secret" {
		t.Errorf("paths: %q %q %q", c.TLS.Certificate, c.Directory.Bind.Keytab, c.Secret.File)
	}
}

// Who writes to the directory is who reads it, unless the file says otherwise.
func TestTheAccountThatPublishes(t *testing.T) {
	for text, want := range map[string]config.Bind{
		"":                                       {Method: "gssapi", Principal: "svc", Keytab: "k"},
		"publish: {bind: {principal: writer}}\n": {Method: "gssapi", Principal: "writer", Keytab: "k"},
		"publish: {bind: {principal: writer, keytab: w}}\n":                {Method: "gssapi", Principal: "writer", Keytab: "w"},
		"publish: {bind: {principal: writer, password: {env: PASS}}}\n":    {Method: "gssapi", Principal: "writer", Password: config.Secret{Env: "PASS"}},
		"publish: {bind: {user: writer@corp.example, password: {env: P}}}": {Method: "simple", User: "writer@corp.example", Password: config.Secret{Env: "P"}},
	} {
		c, err := load(t, minimal+text)
		if err != nil {
			t.Fatal(err)
		}
		got := c.Publish.Bind
		if got.Keytab != "" {
			got.Keytab = filepath.Base(got.Keytab)
		}
		if got != want || !c.Publish.Enabled || c.Leavers.Enabled || c.Leavers.CRLReason() != 3 {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestAnEmptyFileMeansDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "listen:\n  # https: x\n"} {
		c, err := config.Parse([]byte(text))
		if err != nil || c.Listen.HTTPS != ":443" || c.Log.Format != "json" || c.Directory.Bind.Method != "gssapi" {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"an unknown key, with its line":        {strings.Replace(minimal, "kerberos:", "kerberoast:", 1), "[4:1]"},
		"a wrong type, with its line":          {minimal + "policy: {update_hours: many}\n", "[7:"},
		"broken YAML":                          {"tls: [", "[1:"},
		"a short name":                         {strings.Replace(minimal, "enroll.corp.example", "enroll", 1), "public_name"},
		"a password in the clear on the wire":  {strings.Replace(minimal, "{principal: svc}", "{method: simple, user: u, password: {env: P}}", 1), "in the clear"},
		"no CA":                                {strings.Split(minimal, "cas:")[0], "cas: missing"},
		"an unknown driver":                    {strings.Replace(minimal, "{name: CA,", "{name: CA, driver: magic,", 1), "magic"},
		"a step-ca without HTTPS":              {strings.Replace(minimal, "{name: CA,", "{name: CA, driver: step-ca, step_ca: {url: \"http://ca\"},", 1), "step_ca.url"},
		"a foreign CA's own key":               {strings.Replace(minimal, "{name: CA,", "{name: CA, driver: step-ca, identity: ca,", 1), "does not hold"},
		"an identity before the embedded CA":   {strings.Replace(minimal, "{name: CA,", "{name: CA, identity: own,", 1), "signs for itself"},
		"a CA key without a passphrase":        {strings.Replace(minimal, ", passphrase: {env: PASS}", "", 1), "passphrase"},
		"a server that is no LDAP URL":         {strings.Replace(minimal, "ldap://dc1", "http://dc1", 1), "ldap://HOST"},
		"no keytab":                            {strings.Replace(minimal, "{keytab: k}", "{}", 1), "keytab"},
		"an exchange certificate for a second": {minimal + "escrow: {exchange_validity: 1s}\n", "exchange_validity"},
		"a risk that is nobody's":              {minimal + "accept_risk: [{template: T, rule: ESC1, until: 2027-03-31}]\n", "accept_risk[0].by"},
		"a risk without an end":                {minimal + "accept_risk: [{template: T, rule: ESC1, by: J}]\n", "accept_risk[0].until"},
		"a risk until no day":                  {minimal + "accept_risk: [{template: T, rule: ESC1, by: J, until: 31.3.2027}]\n", "31.3.2027"},
		"a risk by a rule that does not exist": {minimal + "accept_risk: [{template: T, rule: ESC99, by: J, until: 2027-03-31}]\n", "ESC99"},
		"a risk by a rule that finds nothing":  {minimal + "accept_risk: [{template: T, rule: ESC6, by: J, until: 2027-03-31}]\n", "ESC6"},
		"a risk of nothing":                    {minimal + "accept_risk: [{rule: ESC1, by: J, until: 2027-03-31}]\n", "accept_risk[0].template"},
		"a risk of two things":                 {minimal + "accept_risk: [{template: T, object: O, rule: ESC1, by: J, until: 2027-03-31}]\n", "accept_risk[0].template"},
		"a retry that never waits":             {minimal + "publish: {retry: 0s}\n", "publish.retry"},
		"a writer without a name":              {minimal + "publish: {bind: {method: gssapi}}\n", "publish.bind.principal"},
		"leavers without a limit":              {minimal + "leavers: {max_per_run: 0}\n", "max_per_run"},
		"a reason that could be taken back":    {minimal + "leavers: {reason: certificateHold}\n", "affiliationChanged, cessationOfOperation"},
		"an empty file":                        {"", "public_name"},
		"a policy without a name":              {minimal + "escrow: {policies: [{required: 2, managers: [m], approvers: [a]}]}\n", "escrow.policies[0].name"},
		"two policies of one name":             {minimal + "escrow: {policies: [{name: a, templates: [T]}, {name: A}]}\n", "occurs twice"},
		"a policy behind one for everything":   {minimal + "escrow: {policies: [{name: a}, {name: b}]}\n", "make it the last"},
		"a quorum that nobody can ask for":     {minimal + "escrow: {policies: [{name: a, required: 2}]}\n", "managers and approvers are needed"},
		"managers without approvers":           {minimal + "escrow: {policies: [{name: a, managers: [m]}]}\n", "go together"},
		"fewer agents than it takes":           {minimal + "escrow: {policies: [{name: a, required: 2, agents: [x], managers: [m], approvers: [a]}]}\n", "1 are named, 2 are needed"},
		"a minimum below the quorum":           {minimal + "escrow: {policies: [{name: a, required: 3, minimum_agents: 2, managers: [m], approvers: [a]}]}\n", "minimum_agents"},
		"a password in the address":            {minimal + "database: {url: \"postgres://u:secret@localhost/d\"}\n", "file or a variable"},
		"a database that proves nothing":       {minimal + "database: {url: \"postgres://u@db/d?sslmode=require\"}\n", "verify-full"},
		"a database of another kind":           {minimal + "database: {url: \"mysql://db/d\"}\n", "postgres://USER@HOST"},
		"a case that never ends":               {minimal + "escrow: {policies: [{name: a, case_validity: 9999h}]}\n", "case_validity"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(t, c.text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
}

func TestTheExampleFileNamesEveryValue(t *testing.T) {
	text, err := os.ReadFile("../../configs/enrollgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if problems := c.Check(); len(problems) > 0 {
		t.Error(problems)
	}
	// With the comment signs before values taken away it must still be a valid file: no value that does not exist.
	var all []string
	for line := range strings.Lines(string(text)) {
		trimmed := strings.TrimLeft(line, " ")
		rest, ok := strings.CutPrefix(trimmed, "# ")
		key, _, isValue := strings.Cut(strings.TrimSpace(rest), ":")
		if ok && isValue && !strings.Contains(strings.TrimPrefix(key, "- "), " ") && !slices.Contains([]string{"id", "user", "password", "method", "keytab", "ca_file"}, key) {
			line = line[:len(line)-len(trimmed)] + rest
		}
		all = append(all, line)
	}
	if _, err := config.Parse([]byte(strings.Join(all, ""))); err != nil {
		t.Error(err)
	}
}

func TestAnAcceptedRiskEndsWithItsDay(t *testing.T) {
	c, err := load(t, minimal+"accept_risk:\n  - {template: Kiosk, rule: ESC1, by: Jane Doe, until: 2027-03-31, reason: until the new kiosks}\n  - {object: Corp CA, rule: esc7, by: J, until: 2028-02-28}\n")
	if err != nil {
		t.Fatal(err)
	}
	r := c.Risks()
	if len(r) != 2 || r[0].Object != "Kiosk" || r[0].By != "Jane Doe" || !r[0].Until.Equal(time.Date(2027, 4, 1, 0, 0, 0, 0, time.UTC)) || r[1].Object != "Corp CA" ||
		!r[1].Until.Equal(time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", r)
	}
}

func TestSecretsAreReadFromPrivateFilesOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("hush\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (config.Secret{File: path}).Read(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that everybody reads: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := (config.Secret{File: path}).Read(); err != nil || string(b) != "hush" {
		t.Errorf("%q, %v", b, err)
	}
	t.Setenv("HUSH", "")
	if _, err := (config.Secret{Env: "HUSH"}).Read(); err == nil {
		t.Error("an empty variable is a secret")
	}
}

// A decoder that panics is an error of the file.
func TestParseEmptyTag(t *testing.T) {
	if _, err := config.Parse([]byte("directory:\n  servers: !\n")); err == nil || !strings.Contains(err.Error(), "tag") {
		t.Errorf("a list that is an empty tag: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("directory:\n  servers: !\n"))
	whole, err := os.ReadFile("../../configs/enrollgate.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(_ *testing.T, text []byte) {
		if c, err := config.Parse(text); err == nil {
			c.Check()
		}
	})
}

func TestTheEndpointMapperGoesWithRPC(t *testing.T) {
	for text, want := range map[string]string{
		"": "off", "listen: {rpc: \":49200\"}\n": ":135", "listen: {rpc: \":49200\", epm: \"off\"}\n": "off", "listen: {rpc: \":49200\", epm: \"10.0.0.1:135\"}\n": "10.0.0.1:135",
	} {
		c, err := load(t, minimal+text)
		if err != nil || c.Listen.EPM != want {
			t.Errorf("%q: %v, %v; want %s", text, c, err, want)
		}
	}
	for _, text := range []string{"listen: {epm: \":135\"}\n", "listen: {rpc: \":135\", epm: \":135\"}\n", "listen: {rpc: \"\"}\n", "listen: {rpc: \"49200\"}\n"} {
		if _, err := load(t, minimal+text); err == nil || !strings.Contains(err.Error(), "listen.") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
