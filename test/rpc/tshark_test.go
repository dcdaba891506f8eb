package rpc

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	"github.com/enrollgate/enrollgate/test/world"
)

// capture records what passes over the loopback interface while during runs, and returns the file.
func capture(t *testing.T, during func()) string {
	t.Helper()
	need(t, "/usr/bin/tshark")
	need(t, "/usr/bin/dumpcap")
	file := filepath.Join(t.TempDir(), "rpc.pcapng")
	var said bytes.Buffer
	cmd := exec.Command("/usr/bin/dumpcap", "-q", "-i", "lo", "-f", "tcp port 49200 or tcp port 135", "-w", file)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("dumpcap does not begin: %s", said.String())
		}
	}
	time.Sleep(300 * time.Millisecond)
	during()
	time.Sleep(1500 * time.Millisecond) // it writes what it has once a second
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("dumpcap: %v: %s", err, said.String())
	}
	return file
}

// TestTsharkUnderstandsAll has tshark read and decrypt what both sides have sent.
func TestTsharkUnderstandsAll(t *testing.T) {
	need(t, "/usr/bin/tshark")
	start(t)
	file := capture(t, func() {
		for _, h := range []how{{}, {bare: true, port: true}} {
			in := good(t)
			in.Request = blob(append(in.Request.Buffer, make([]byte, 14000)...)) // fragments; garbage, which is answered with a disposition
			ask(t, mustDial(t, "alice", h), in)
			if out := ask(t, mustDial(t, "alice", h), &icertpassage.CertServerRequestRequest{Flags: pkcs10 | full, Attributes: template("LabUserAuth"), Request: blob(csr(t))}); out.Disposition != 3 {
				t.Errorf("disposition 0x%x", out.Disposition)
			}
		}
		if _, err := os.Stat("/usr/bin/rpcclient"); err == nil {
			env := tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY"))
			run(t, env, "/usr/bin/rpcclient", "--configfile="+smbConf(t), "--use-kerberos=required", "--use-krb5-ccache="+ccache(env), "-c", "epmlookup",
				"ncacn_ip_tcp:"+world.Env("LAB_GATEWAY")+"[135,spnego,krb5,seal]")
		}
	})
	judge(t, file, map[string]int{"dcerpc.pkt_type == 11": 6, "dcerpc.pkt_type == 12": 6, "dcerpc.pkt_type == 15": 2, "dcerpc.pkt_type == 16": 2,
		"dcerpc.pkt_type == 2": 8, "dcerpc.encrypted_stub_data": 1, "dcerpc.decrypted_stub_data": 8, "epm": 2})
}

// tshark lists what a filter finds in a file, with the keys of the gateway.
func tshark(t *testing.T, file, filter string) (lines []string) {
	t.Helper()
	out, err := exec.Command("/usr/bin/tshark", "-r", file, "-o", "kerberos.decrypt:TRUE", "-o", "kerberos.file:"+world.Env("LAB_KEYTAB_SVC"),
		"-d", "tcp.port==49200,dcerpc", "-d", "tcp.port==135,dcerpc", "-Y", filter).Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(out) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// judge wants nothing malformed in a file, no warning about what the gateway sends, and at least so many of what filters find. Two warnings
// are tshark's own: it does not align what follows an odd number of bindings in ServerAlive2's answer, and stops reading ResolveOxid2's at a
// null pointer.
func judge(t *testing.T, file string, want map[string]int) {
	t.Helper()
	if bad := tshark(t, file, "_ws.malformed || _ws.expert.severity == error || (ip.src == "+world.Env("LAB_GW_IP")+" && dcerpc && _ws.expert.severity == \"Warning\" && !(oxid && dcerpc.opnum in {4, 5}))"); bad != nil {
		t.Errorf("malformed:\n%s", strings.Join(bad, "\n"))
	}
	for filter, least := range want {
		n := len(tshark(t, file, filter))
		t.Logf("%s: %d", filter, n)
		if n < least {
			t.Errorf("%s: %d, want at least %d", filter, n, least)
		}
	}
	t.Logf("%d PDUs", len(tshark(t, file, "dcerpc")))
}

// TestTsharkUnderstandsNativeEnrollment has it read everything that there is for Windows at once: a client in the order of Windows, a
// certificate manager, impacket's two, ICertPassage with an archived key, and the endpoint mapper.
func TestTsharkUnderstandsNativeEnrollment(t *testing.T) {
	need(t, "/usr/bin/tshark")
	python(t, "impacket")
	w := startManaged(t, 1)
	path := filepath.Join(t.TempDir(), "request.der")
	if err := os.WriteFile(path, csr(t), 0o600); err != nil {
		t.Fatal(err)
	}
	file := capture(t, func() {
		windowsOrder(t, w, dialDCOM(t, "alice", dcerpc.WithSeal()), "LabUserSMIME")
		id := pend(t, dialD2(t, "helpdesk", dcerpc.WithSeal()), "www.lab.test")
		carol := dialAdmin(t, "carol", dcerpc.WithSeal())
		if rows, _ := openView(t, carol, 0, 10, []uint32{0x1000}); len(rows) != 2 {
			t.Errorf("%d rows", len(rows))
		}
		closeView(t, carol)
		if disposition, code := resubmit(t, carol, id); disposition != 3 || code != 0 {
			t.Errorf("0x%x, %v", disposition, code)
		}
		env := tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY"))
		run(t, env, "/usr/bin/python3", "com.py", "request", world.Env("LAB_GATEWAY"), "alice", world.CAName, "LabUserAuth", path)
		run(t, env, "/usr/bin/python3", "icpr.py", world.Env("LAB_GATEWAY"), "alice", world.CAName, "LabUserAuth", path)
		der, _ := world.Request(t, "LabUserSMIME", exchange(t, w))
		if out := ask(t, mustDial(t, "alice", how{}), &icertpassage.CertServerRequestRequest{Flags: cmc | full, Request: blob(der)}); out.Disposition != 3 {
			t.Errorf("disposition 0x%x", out.Disposition)
		}
		run(t, env, "/usr/bin/rpcclient", "--configfile="+smbConf(t), "--use-kerberos=required", "--use-krb5-ccache="+ccache(env), "-c", "epmlookup",
			"ncacn_ip_tcp:"+world.Env("LAB_GATEWAY")+"[135,krb5,seal]")
	})
	judge(t, file, map[string]int{"dcerpc.pkt_type == 2": 30, "dcerpc.decrypted_stub_data": 25, "isystemactivator && dcerpc.pkt_type == 2": 4, "remunk && dcerpc.pkt_type == 2": 2,
		"oxid && dcerpc.pkt_type == 2": 4, "epm && dcerpc.pkt_type == 2": 3, "dcom.dualstringarray.security_princ_name contains \"host/\"": 4})
}
