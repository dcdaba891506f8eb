package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/test/world"
)

// A new machine: all keys that alice ever had come in one file, with one code for the agents, and every mail opens again.
func TestAllKeysOfAPersonAreRecoveredTogether(t *testing.T) {
	w := world.StartChanged(t, "", twoOfThree)
	sh := newShell(t)
	sh.needs("gpgsm", "gpgconf", "keytool", "pk12util")
	first, second := designate(t, w, "kra1"), designate(t, w, "kra2")
	var mails []string
	for i := range 3 {
		_, cert := archived(t, w)
		name := fmt.Sprintf("mail%d", i)
		sh.openssl(nil, "cms", "-encrypt", "-aes256", "-in", sh.write(name+".txt", []byte(name+" is secret\n")), "-outform", "DER", "-out", name+".p7m",
			sh.write(name+".pem", pemOf("CERTIFICATE", cert.Raw)))
		mails = append(mails, name+".p7m")
	}
	agents := map[*recoveryAgent][]string{}
	for _, agent := range []*recoveryAgent{first, second} {
		p12, err := pkcs12.Modern.Encode(agent.key, agent.cert, nil, world.Env("LAB_PASSWORD"))
		if err != nil {
			t.Fatal(err)
		}
		agents[agent] = []string{"--key", sh.write(agent.name+".p12", p12), "--key-password-env", "LAB_PASSWORD"}
	}

	files, password := recoverAll(t, sh, agents, "all.p12")
	sh.readByOthers(files[0], password, len(mails))
	// GnuPG takes one key from a file, and its version before 2.4 the old encryption only.
	files, password = recoverAll(t, sh, agents, "one.p12", "--separate", "--legacy-pkcs12")
	if len(files) != len(mails) {
		t.Fatalf("%d files", len(files))
	}
	for i, text := range sh.decryptedByGPGSM(files, password, mails) {
		if want := fmt.Sprintf("mail%d is secret", i); !strings.Contains(text, want) {
			t.Errorf("gpgsm: %q, want %q", text, want)
		}
	}
	if count := events(t, w); count[audit.CaseFetched] != 6 || count[audit.CaseApproved] != 12 {
		t.Errorf("audit log: %v", count)
	}
}

// recoverAll recovers all keys of alice: one agent approves online, the others on machines without a network.
func recoverAll(t *testing.T, sh *shell, agents map[*recoveryAgent][]string, out string, flags ...string) (files []string, password string) {
	t.Helper()
	var opened struct {
		Cases      []int64
		Code, File string
	}
	sh.run("helpdesk", &opened, "open", "--owner", "alice", "--all", "--for", "alice@LAB.TEST", "--reason", "new machine")
	var ids []string
	for _, id := range opened.Cases {
		ids = append(ids, fmt.Sprint(id))
	}
	online := true
	for agent, key := range agents {
		name := agent.name
		// The code is that of all cases: it does not approve a part of them.
		if text := sh.refused(name, 3, slices.Concat([]string{"approve", "--code", opened.Code}, ids[1:], key)...); !strings.Contains(text, "not that of the case") {
			t.Errorf("the code for a part of the cases: %s", text)
		}
		if online {
			sh.run(name, nil, slices.Concat([]string{"approve", "--code", opened.Code}, ids, key)...)
		} else {
			sh.run(name, nil, append([]string{"show", "--out", out + name}, ids...)...)
			sh.run("", nil, append([]string{"approve", out + name, "--code", opened.Code, "--out", out + name + ".approvals"}, key...)...)
			sh.run(name, nil, append([]string{"approve", "--approval", out + name + ".approvals"}, ids...)...)
		}
		online = false
	}
	var fetched struct {
		Password string
		Files    []string
	}
	sh.run("helpdesk", &fetched, slices.Concat([]string{"fetch", "--case-key", opened.File, "--out", out}, flags, ids)...)
	return fetched.Files, fetched.Password
}
