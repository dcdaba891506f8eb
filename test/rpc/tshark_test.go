package rpc

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	read := func(filter string) []string {
		t.Helper()
		out, err := exec.Command("/usr/bin/tshark", "-r", file, "-o", "kerberos.decrypt:TRUE", "-o", "kerberos.file:"+world.Env("LAB_KEYTAB_SVC"),
			"-d", "tcp.port==49200,dcerpc", "-d", "tcp.port==135,dcerpc", "-Y", filter).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	}
	count := func(filter string) int {
		lines := read(filter)
		if lines[0] == "" {
			return 0
		}
		return len(lines)
	}
	if bad := read("_ws.malformed || _ws.expert.severity == error"); bad[0] != "" {
		t.Errorf("malformed:\n%s", strings.Join(bad, "\n"))
	}
	for filter, least := range map[string]int{"dcerpc.pkt_type == 11": 6, "dcerpc.pkt_type == 12": 6, "dcerpc.pkt_type == 15": 2, "dcerpc.pkt_type == 16": 2,
		"dcerpc.pkt_type == 2": 8, "dcerpc.pkt_type == 3": 0, "dcerpc.encrypted_stub_data": 1, "dcerpc.decrypted_stub_data": 8, "dcerpc.stub_data_with_sec_vt": 0, "epm": 2} {
		n := count(filter)
		t.Logf("%s: %d", filter, n)
		if n < least {
			t.Errorf("%s: %d, want at least %d", filter, n, least)
		}
	}
	t.Logf("%d PDUs", count("dcerpc"))
}
