package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/doctor"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/world"
	"github.com/go-ldap/ldap/v3"
	"github.com/jcmturner/gokrb5/v8/keytab"
)

// examine runs doctor and requires that its exit code fits what it says. The lab's certificates end within a month, which is
// said, and left out here.
func examine(t *testing.T, p *world.Process) []doctor.Finding {
	t.Helper()
	out, code := p.Output(t, "doctor", "--output", "json", "--timeout", "20s")
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := map[bool]int{true: 6}[r.Attention > 0]; code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	for _, f := range r.Findings {
		if f.Outcome == doctor.Attention && (f.Reason == "" || f.Fix == "") {
			t.Errorf("no reason or no fix: %+v", f)
		}
	}
	return slices.DeleteFunc(r.Findings, func(f doctor.Finding) bool { return strings.Contains(f.Reason, "ends on ") })
}

// requireFinding looks for a finding with these words in it.
func requireFinding(t *testing.T, all []doctor.Finding, check string, outcome doctor.Outcome, reason, fix string) {
	t.Helper()
	for _, f := range all {
		if f.Check == check && f.Outcome == outcome && strings.Contains(f.Subject+": "+f.Reason, reason) && strings.Contains(f.Fix, fix) {
			return
		}
	}
	t.Errorf("no finding of %s with %q and the fix %q among", check, reason, fix)
	for _, f := range all {
		t.Logf("%s %s %s: %s → %s", f.Outcome, f.Check, f.Subject, f.Reason, f.Fix)
	}
}

// requireWell requires that a check found nothing.
func requireWell(t *testing.T, all []doctor.Finding, checks ...string) {
	t.Helper()
	for _, f := range all {
		if (len(checks) == 0 || slices.Contains(checks, f.Check)) && f.Outcome != doctor.OK {
			t.Errorf("%s %s %s: %s → %s", f.Outcome, f.Check, f.Subject, f.Reason, f.Fix)
		}
	}
}

func TestDoctorIsContentWithTheLab(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	all := examine(t, p)
	requireWell(t, all)
	checks := map[string]bool{}
	for _, f := range all {
		checks[f.Check] = true
	}
	for _, name := range []string{"configuration", "database", "gateway", "directory", "clock", "dns", "enrollment service", "templates", "spn", "keytab", "ticket", "port", "activation", "tls", "agents", "disk", "memory"} {
		if !checks[name] {
			t.Errorf("nothing about %s", name)
		}
	}
	requireFinding(t, all, "directory", doctor.OK, "sealed by Kerberos", "")
	requireFinding(t, all, "ticket", doctor.OK, "HTTP/enroll.lab.test", "")
	if out, code := p.Output(t, "doctor"); code != 6 || !strings.Contains(out, "→ renew it") || !strings.Contains(out, "need attention") { // the lab's certificates
		t.Errorf("%d\n%s", code, out)
	}
}

// TestDoctorActivatesAsWindowsDoes: with DCOM on, it is a client of it; what keeps that client away is found.
func TestDoctorActivatesAsWindowsDoes(t *testing.T) {
	w, path := world.Prepare(t, fmt.Sprintf(`listen: {https: "%[1]s:443", http: "%[1]s:80", metrics: "off", rpc: "%[1]s:49200", epm: "%[1]s:135"}`, world.Env("LAB_GW_IP")))
	p := world.NewProcess(t, w, path)
	all := examine(t, p)
	requireFinding(t, all, "activation", doctor.Attention, "connection refused", "clients need TCP 135")
	requireFinding(t, all, "port", doctor.Attention, "enroll.lab.test:135: nobody listens there", "start the gateway")
	p.Start(t)
	all = examine(t, p)
	requireWell(t, all, "activation", "port", "dns", "spn", "ticket", "enrollment service")
	requireFinding(t, all, "activation", doctor.OK, "activated as svc-enroll, at ncacn_ip_tcp:enroll.lab.test[49200]", "")
	requireFinding(t, all, "activation", doctor.OK, world.CAName+": answers over DCOM; 1", "") // templates
	requireFinding(t, all, "spn", doctor.OK, "HOST/enroll.lab.test", "")
	t.Run("another account has HOST", func(t *testing.T) {
		duplicateSPN(t, "CN=Bob Baker,CN=Users,"+world.Env("LAB_BASE_DN"), "RPCSS/enroll.lab.test")
		requireFinding(t, examine(t, p), "activation", doctor.Attention, "Windows' own enrollment policy gets no certificates", "HOST/enroll.lab.test")
	})
	all = examine(t, p.Twin(t, changed(t, path, "listen:", fmt.Sprintf(`listen: {https: "%[1]s:443", http: "%[1]s:80", metrics: "off"}`, world.Env("LAB_GW_IP"))), ""))
	requireFinding(t, all, "activation", doctor.OK, "DCOM is off", "")
}

// TestDoctorFindsWhatIsBrokenInTheForest breaks one thing after the other, and repairs it.
func TestDoctorFindsWhatIsBrokenInTheForest(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	conn := world.Admin(t)
	service := "CN=" + world.CAName + ",CN=Enrollment Services," + pkiBase()
	other := labCertificate(t, "LAB_CA_PEM")

	replace(t, conn, service, "cACertificate", string(other))
	replace(t, conn, service, "dNSHostName", "gone.lab.test")
	add(t, conn, service, "certificateTemplates", "NoSuchTemplate", "LabNobody")
	addNobodysTemplate(t, conn)
	changeACL(t, service, func(a security.ACE) bool { return a.Object != security.RightEnroll })
	ntAuth := "CN=NTAuthCertificates," + pkiBase()
	replace(t, conn, ntAuth, "cACertificate", string(other))

	all := examine(t, p)
	init := "enrollgate init --native"
	requireFinding(t, all, "enrollment service", doctor.Attention, "cACertificate is “CN=LAB Root CA", init)
	requireFinding(t, all, "enrollment service", doctor.Attention, "dNSHostName is “gone.lab.test”, and should be “enroll.lab.test”", init)
	requireFinding(t, all, "enrollment service", doctor.Attention, "nobody has the Enroll right", init)
	requireFinding(t, all, "templates", doctor.Attention, "LAB Issuing CA: NoSuchTemplate: the forest has no such template", "Remove-CATemplate")
	requireFinding(t, all, "templates", doctor.Attention, "LAB Issuing CA: LabNobody: nobody may enroll", "give Enroll to a group")
	requireFinding(t, all, "cas", doctor.Attention, "does not accept its certificates for logon", "NTAuthCA")
	requireWell(t, all, "spn", "keytab", "ticket", "dns", "port", "directory")
}

// TestDoctorFindsNamesAndKeysThatDoNotFit is about accounts and the keytab.
func TestDoctorFindsNamesAndKeysThatDoNotFit(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	t.Run("another account has the name, too", func(t *testing.T) {
		duplicateSPN(t, "CN=Bob Baker,CN=Users,"+world.Env("LAB_BASE_DN"), "HTTP/enroll.lab.test")
		all := examine(t, p)
		requireFinding(t, all, "spn", doctor.Attention, "2 accounts have it", "setspn -D HTTP/enroll.lab.test")
		requireFinding(t, all, "spn", doctor.Attention, `lab.test\bob`, "setspn -D")
		requireWell(t, all, "keytab", "enrollment service")
	})
	for what, c := range map[string]struct {
		change      func(*keytab.Keytab)
		reason, fix string
	}{
		"an old version": {func(k *keytab.Keytab) { version(k, 1) }, "has version 1, the directory has 2: the password was changed", "export the keytab of svc-enroll again"},
		"a new version":  {func(k *keytab.Keytab) { version(k, 9) }, "has version 9, the directory has 2", "wait until the controllers have replicated"},
		"no AES-256": {func(k *keytab.Keytab) {
			keys := k.Entries[:0]
			for _, e := range k.Entries {
				if e.Key.KeyType == 17 {
					keys = append(keys, e)
				}
			}
			k.Entries = keys
		}, "tickets for svc-enroll of AES-256, of which the keytab has no key", "with aes256-cts-hmac-sha1-96"},
		"somebody else's": {nil, "no key of svc-enroll", "export the keytab of svc-enroll"},
	} {
		t.Run(what, func(t *testing.T) {
			source := world.Env("LAB_KEYTAB_SVC")
			if c.change == nil {
				source = world.Env("LAB_KEYTAB_BOB")
			}
			kt, err := keytab.Load(source)
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(kt)
			}
			octets, err := kt.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "broken.keytab")
			if err := os.WriteFile(file, octets, 0o600); err != nil {
				t.Fatal(err)
			}
			all := examine(t, p.Twin(t, changed(t, path, "kerberos:", "kerberos: {keytab: "+file+"}", "principal: svc-enroll", "principal: svc-enroll, keytab: "+world.Env("LAB_KEYTAB_SVC")), ""))
			requireFinding(t, all, "keytab", doctor.Attention, c.reason, c.fix)
			requireWell(t, all, "directory", "port")
		})
	}
}

func version(k *keytab.Keytab, n uint32) {
	for i := range k.Entries {
		k.Entries[i].KVNO, k.Entries[i].KVNO8 = n, uint8(n)
	}
}

// TestDoctorFindsWhatIsBrokenAround: nothing runs, the certificate is for another name, DNS does not know the gateway, the
// directory cannot be reached, the configuration is wrong. Each is found, and the other checks are made.
func TestDoctorFindsWhatIsBrokenAround(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path) // which is not started

	all := examine(t, p)
	requireFinding(t, all, "port", doctor.Attention, "enroll.lab.test:443: nobody listens there", "start the gateway")
	requireFinding(t, all, "port", doctor.Attention, "enroll.lab.test:80: nobody listens there", "start the gateway")
	requireFinding(t, all, "gateway", doctor.Attention, "does not answer", "systemctl start enrollgate")
	requireWell(t, all, "spn", "keytab", "ticket", "enrollment service", "tls", "dns")

	all = examine(t, p.Twin(t, changed(t, path, "public_name:", "public_name: nowhere.lab.test"), ""))
	requireFinding(t, all, "dns", doctor.Attention, "nowhere.lab.test: clients cannot find the gateway", "add an A or AAAA record")
	requireFinding(t, all, "tls", doctor.Attention, "clients refuse it", "get a certificate with the DNS name nowhere.lab.test")
	requireFinding(t, all, "spn", doctor.Attention, "HTTP/nowhere.lab.test: no account of the forest has it", "setspn -S HTTP/nowhere.lab.test")
	requireFinding(t, all, "port", doctor.Unknown, "the name has no address", "")

	all = examine(t, p.Twin(t, changed(t, path, `  servers: ["`+world.Env("LAB_LDAP_URL"), `  servers: ["ldap://`+world.Env("LAB_GATEWAY")), ""))
	requireFinding(t, all, "directory", doctor.Attention, "it cannot be read", "firewall")
	requireFinding(t, all, "spn", doctor.Unknown, "needs the directory", "")
	requireFinding(t, all, "enrollment service", doctor.Unknown, "needs the directory", "")
	requireWell(t, all, "database", "disk", "memory", "ticket")

	all = examine(t, p.Twin(t, changed(t, path, "data:", "data: /proc/nothing"), ""))
	requireFinding(t, all, "database", doctor.Attention, "cannot be opened", "correct what the message names")
	requireFinding(t, all, "cas", doctor.Unknown, "could not open", "")
	requireWell(t, all, "spn", "keytab", "directory", "dns")

	all = examine(t, p.Twin(t, changed(t, path, "data:", "data: "+t.TempDir()), ""))
	requireFinding(t, all, "agents", doctor.Attention, "templates that archive keys are refused", "enrollgate escrow agents add")
	requireWell(t, all, "database", "cas")

	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(world.Env("LAB_PASSWORD")), 0o600); err != nil {
		t.Fatal(err)
	}
	all = examine(t, p.Twin(t, changed(t, path, `  servers: ["`+world.Env("LAB_LDAP_URL")+`"]`, `  servers: ["`+world.Env("LAB_LDAPS_URL")+`"]`+"\n  ca_file: "+world.Env("LAB_CA_PEM"),
		"  bind: {method: gssapi, principal: svc-enroll}", "  bind: {method: simple, user: svc-enroll@lab.test, password: {file: "+password+"}}"), ""))
	requireFinding(t, all, "directory", doctor.OK, "dc1.lab.test answers, TLS", "")
	requireFinding(t, all, "ticket", doctor.Unknown, "needs an account with a keytab", "")
	requireWell(t, all, "spn", "keytab", "clock", "enrollment service")

	all = examine(t, p.Twin(t, changed(t, path, "data:", "dota: x"), ""))
	requireFinding(t, all, "configuration", doctor.Attention, "dota", "config check")
}

// TestDoctorsAdviceHelps: what it finds of a CA that the forest does not know, init --native repairs.
func TestDoctorsAdviceHelps(t *testing.T) {
	n := newNative(t)
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path).Twin(t, n.config, "")
	all := examine(t, p)
	requireFinding(t, all, "enrollment service", doctor.Attention, "Native Test CA: the forest has no CN=Native Test CA,CN=Enrollment Services", "enrollgate init --native")
	requireFinding(t, all, "cas", doctor.Attention, "Native Test CA: the forest does not accept its certificates for logon", "enrollgate init --native")
	requireFinding(t, all, "cas", doctor.Attention, "domain members do not trust its root CN=Native Test CA", "RootCA; or enrollgate init --native")
	n.init(t, 0, "--ca", nativeCA, "--apply", "--yes")
	all = examine(t, p)
	requireWell(t, all, "cas")
	requireFinding(t, all, "templates", doctor.Attention, "Native Test CA: it offers no template", "--templates")
	requireWell(t, all, "enrollment service")
	n.init(t, 0, "--ca", nativeCA, "--templates", "LabUserAuth", "--apply", "--yes")
	all = examine(t, p)
	requireWell(t, all, "cas", "enrollment service", "templates")
	requireFinding(t, all, "enrollment service", doctor.OK, "Native Test CA: published as it runs", "")
}

// changed writes a configuration in which the lines with the prefixes are others.
func changed(t *testing.T, path string, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(pairs); i += 2 {
		for j, l := range lines {
			switch {
			case strings.HasPrefix(l, pairs[i]) && strings.HasPrefix(pairs[i], " "):
				lines[j] = strings.Replace(l, pairs[i], pairs[i+1], 1)
			case strings.HasPrefix(l, pairs[i]):
				lines[j] = pairs[i+1]
			case strings.HasPrefix(pairs[i], "principal"):
				lines[j] = strings.Replace(l, pairs[i], pairs[i+1], 1)
			}
		}
	}
	out := filepath.Join(filepath.Dir(path), strings.ReplaceAll(t.Name(), "/", "-")+".yaml")
	if err := os.WriteFile(out, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// replace changes an attribute until the test ends.
func replace(t *testing.T, conn *ldap.Conn, dn, attribute string, values ...string) {
	t.Helper()
	found, err := conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{attribute}, nil))
	if err != nil {
		t.Fatal(err)
	}
	was := found.Entries[0].GetAttributeValues(attribute)
	set := func(values []string) {
		request := ldap.NewModifyRequest(dn, nil)
		request.Replace(attribute, values)
		if err := conn.Modify(request); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set(was) })
	set(values)
}

// add adds values to an attribute until the test ends.
func add(t *testing.T, conn *ldap.Conn, dn, attribute string, values ...string) {
	t.Helper()
	request := ldap.NewModifyRequest(dn, nil)
	request.Add(attribute, values)
	if err := conn.Modify(request); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		request := ldap.NewModifyRequest(dn, nil)
		request.Delete(attribute, values)
		if err := conn.Modify(request); err != nil {
			t.Error(err)
		}
	})
}

// duplicateSPN gives an account a name that another one has, which a controller refuses to write: two controllers at the same
// time did it.
func duplicateSPN(t *testing.T, dn, spn string) {
	t.Helper()
	const script = `
import glob, sys, ldb
flag = {"add": ldb.FLAG_MOD_ADD, "delete": ldb.FLAG_MOD_DELETE}[sys.argv[4]]
db = ldb.Ldb(glob.glob(sys.argv[1] + "/private/sam.ldb.d/" + sys.argv[5].upper() + ".ldb")[0])
m = ldb.Message(ldb.Dn(db, sys.argv[2]))
m["servicePrincipalName"] = ldb.MessageElement(sys.argv[3], flag, "servicePrincipalName")
db.modify(m)
`
	run := func(what string) {
		t.Helper()
		out, err := exec.Command("/usr/bin/python3", "-c", script, world.Env("LAB_DIR"), dn, spn, what, world.Env("LAB_BASE_DN")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	t.Cleanup(func() { run("delete") })
	run("add")
}

// labCertificate reads a certificate of the lab, in DER.
func labCertificate(t *testing.T, variable string) []byte {
	t.Helper()
	text, err := os.ReadFile(world.Env(variable))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	return block.Bytes
}

// descriptorOf is the access control list of an object, as stored.
func descriptorOf(t *testing.T, conn *ldap.Conn, dn string) (d *security.Descriptor, parts []ldap.Control) {
	t.Helper()
	parts = []ldap.Control{&ldap.ControlMicrosoftSDFlags{Criticality: true, ControlValue: 4}}
	found, err := conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"nTSecurityDescriptor"}, parts))
	if err != nil {
		t.Fatal(err)
	}
	if d, err = security.ParseDescriptor(found.Entries[0].GetRawAttributeValue("nTSecurityDescriptor")); err != nil {
		t.Fatal(err)
	}
	return d, parts
}

// changeACL keeps only some entries of an access control list, until the test ends.
func changeACL(t *testing.T, dn string, keep func(security.ACE) bool) {
	t.Helper()
	conn := world.Admin(t)
	d, parts := descriptorOf(t, conn, dn)
	own := slices.DeleteFunc(slices.Clone(d.DACL), func(a security.ACE) bool { return a.WasInherited() })
	set := func(list []security.ACE) {
		d.DACL = list
		request := ldap.NewModifyRequest(dn, parts)
		request.Replace("nTSecurityDescriptor", []string{string(d.Bytes())})
		if err := conn.Modify(request); err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set(own) })
	set(slices.DeleteFunc(slices.Clone(own), func(a security.ACE) bool { return !keep(a) }))
}

// addNobodysTemplate makes a template for which nobody may enroll, until the test ends.
func addNobodysTemplate(t *testing.T, conn *ldap.Conn) {
	t.Helper()
	g := newGitops(t)
	text := strings.Replace(newTemplate, "GitOps, Web #1", "LabNobody", 1)
	text = strings.Replace(text, "\n  - allow enroll, autoenroll for LAB\\Domain Computers", "", 1)
	text = strings.Replace(text, "display_name: Web servers of team 1", "display_name: Nobody's", 1)
	text = strings.Replace(text, "offered_by: [LAB Issuing CA]\n", "", 1)
	t.Cleanup(func() { deleteObjects(t, "(|(cn=LabNobody)(displayName=Nobody's))") })
	g.run(t, 0, "apply", "--yes", g.write(t, "nobody.yaml", text))
}
