package rpc

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// discover finds a CA as Windows does: by the enrollment services that offer a template ([MS-WCCE] 2.2.2.11).
func discover(t *testing.T, conn *ldap.Conn, template string) (dn, host, ca string) {
	t.Helper()
	res, err := conn.Search(ldap.NewSearchRequest("CN=Enrollment Services,CN=Public Key Services,CN=Services,"+world.Env("LAB_CONFIG_DN"), ldap.ScopeSingleLevel, ldap.NeverDerefAliases, 0, 0, false,
		"(&(objectClass=pKIEnrollmentService)(certificateTemplates="+template+"))", []string{"dNSHostName", "cn"}, nil))
	if err != nil || len(res.Entries) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	e := res.Entries[0]
	return e.DN, e.GetAttributeValue("dNSHostName"), e.GetAttributeValue("cn")
}

// TestOneObjectSwitchesTheForest has clients that know nothing but the directory. Its object names a server that is gone; init --native shows the one
// change that it takes, makes it, and the same clients enroll here, with their keys archived.
func TestOneObjectSwitchesTheForest(t *testing.T) {
	w, path := world.Prepare(t, fmt.Sprintf(`listen: {https: "%[1]s:443", http: "%[1]s:80", metrics: "off", rpc: "%[1]s:49200", epm: "%[1]s:135"}`, world.Env("LAB_GW_IP")))
	p := world.NewProcess(t, w, path)
	p.Start(t)
	conn := world.Admin(t)
	dn, _, _ := discover(t, conn, "LabUserSMIME")
	point := func(host string) {
		t.Helper()
		m := ldap.NewModifyRequest(dn, nil)
		m.Replace("dNSHostName", []string{host})
		if err := conn.Modify(m); err != nil {
			t.Fatal(err)
		}
	}
	point("gone.lab.test")
	t.Cleanup(func() { point(world.Env("LAB_GATEWAY")) })
	if _, host, _ := discover(t, conn, "LabUserSMIME"); host != "gone.lab.test" {
		t.Fatal(host)
	} else if _, err := net.LookupHost(host); err == nil {
		t.Fatal("the old server is there")
	}

	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(world.Env("LAB_PASSWORD")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"init", "--native", "--no-https", "--no-cdp"}
	shown, code := p.Output(t, args...)
	if code != 5 || !strings.Contains(shown, "gone.lab.test") || strings.Count(shown, "\n@@") != 1 {
		t.Errorf("the plan, %d: %s", code, shown)
	}
	if out, code := p.Output(t, append(args, "--apply", "--yes", "--bind-principal", "Administrator@"+world.Env("LAB_REALM"), "--password-file", password)...); code != 0 {
		t.Fatalf("%d: %s", code, out)
	}

	_, host, ca := discover(t, conn, "LabUserSMIME")
	d2 := msrpc.Object(msrpc.DialHost(t, host, "alice", dcerpc.WithSeal()), msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd2.NewCertRequestD2Client)
	fetched, result := caProperty(t, d2, 0x0f, 0, 3)
	if result != 0 || ca != world.CAName {
		t.Fatal(ca, result)
	}
	der, _ := world.Request(t, "LabUserSMIME", testpki.Cert(t, fetched))
	cert := issuedInFull(t, d2, der)
	if out, code := p.Output(t, "escrow", "list", "--owner", "alice", "--output", "json"); code != 0 || !strings.Contains(strings.ToLower(out), cert.SerialNumber.Text(16)) {
		t.Errorf("%d: %s", code, out)
	}
	if out, code := p.Output(t, args...); code != 0 {
		t.Errorf("once more, %d: %s", code, out)
	}
}
