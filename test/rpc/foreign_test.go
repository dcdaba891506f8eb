package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/world"
)

// tickets logs an account on and fetches service tickets with MIT's programs; impacket's own request for them Samba's KDC does not take.
func tickets(t testing.TB, account string, services ...string) (env []string) {
	t.Helper()
	cache := filepath.Join(t.TempDir(), "tickets")
	env = append(os.Environ(), "KRB5CCNAME="+cache, "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore")
	login := exec.Command("/usr/bin/kinit", account)
	login.Env, login.Stdin = env, strings.NewReader(world.Env("LAB_PASSWORD")+"\n")
	if out, err := login.CombinedOutput(); err != nil {
		t.Fatalf("kinit: %v: %s", err, out)
	}
	if len(services) > 0 {
		get := exec.Command("/usr/bin/kvno", services...)
		get.Env = env
		if out, err := get.CombinedOutput(); err != nil {
			t.Fatalf("kvno: %v: %s", err, out)
		}
	}
	return env
}

func run(t testing.TB, env []string, program string, args ...string) string {
	t.Helper()
	out, err := try(t, env, program, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return out
}

func try(t testing.TB, env []string, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// python wants a module of Debian's Python.
func python(t testing.TB, module string) {
	t.Helper()
	need(t, "/usr/bin/python3")
	if err := exec.Command("/usr/bin/python3", "-c", "import "+module).Run(); err != nil {
		need(t, "/usr/lib/python3/dist-packages/"+module)
	}
}

func TestImpacketEnrolls(t *testing.T) {
	python(t, "impacket")
	start(t)
	request := filepath.Join(t.TempDir(), "request.der")
	if err := os.WriteFile(request, csr(t), 0o600); err != nil {
		t.Fatal(err)
	}
	env := tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY"))
	said := func(template string, more ...string) (answer struct {
		Fault string
		Calls []struct {
			Port                                        string
			Return, Disposition, ID, Certificate, Chain int64
			Message                                     string
		}
	}) {
		t.Helper()
		args := append([]string{"icpr.py", world.Env("LAB_GATEWAY"), "alice", world.CAName, template, request}, more...)
		out := run(t, env, "/usr/bin/python3", args...)
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return answer
	}
	a := said("LabUserAuth")
	if len(a.Calls) != 2 || a.Calls[0].Disposition != 3 || a.Calls[0].Certificate == 0 || a.Calls[0].Chain <= a.Calls[0].Certificate || !strings.Contains(a.Calls[0].Port, "[49200]") {
		t.Errorf("%+v", a)
	}
	if a := said("LabMachine"); len(a.Calls) != 2 || hresult.Code(a.Calls[0].Disposition) != hresult.TemplateDenied || a.Calls[0].Return != 0 || a.Calls[0].ID == 0 {
		t.Errorf("%+v", a)
	}
	for _, level := range []string{"1", "2"} { // version 0.10 fails at integrity level by itself
		if a := said("LabUserAuth", level); !strings.Contains(a.Fault, "access_denied") {
			t.Errorf("level %s: %+v", level, a)
		}
	}
}

func TestRpcdumpListsTheInterface(t *testing.T) {
	python(t, "impacket")
	need(t, "/usr/share/doc/python3-impacket/examples/rpcdump.py")
	start(t)
	out := run(t, os.Environ(), "/usr/bin/python3", "/usr/share/doc/python3-impacket/examples/rpcdump.py", world.Env("LAB_GATEWAY"))
	if !strings.Contains(out, "ncacn_ip_tcp:127.0.0.20[49200]") || !strings.Contains(strings.ToUpper(out), "91AE6020-9E3C-11CF-8D7C-00AA00C091BE") || !strings.Contains(out, "MS-ICPR") {
		t.Error(out)
	}
}

// TestSambaLooksUp is Samba's client, whose GSS library is Heimdal, at every level that it has.
func TestSambaLooksUp(t *testing.T) {
	need(t, "/usr/bin/rpcclient")
	w := start(t)
	env := tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY"))
	for options, want := range map[string]string{"": "level=none", "krb5,connect": "level=connect", "krb5,sign": "level=integrity", "krb5,seal": "level=privacy",
		"spnego,krb5,sign": "level=integrity", "spnego,krb5,seal": "level=privacy", "krb5,packet": "level=packet"} {
		var logged bytes.Buffer
		w.LogTo(&logged)
		binding := "ncacn_ip_tcp:" + world.Env("LAB_GATEWAY") + "[" + strings.TrimSuffix("135,"+options, ",") + "]"
		args := []string{"--configfile=" + smbConf(t), "--use-kerberos=required", "--use-krb5-ccache=" + ccache(env), "-c", "epmlookup", binding}
		out := run(t, env, "/usr/bin/rpcclient", args...)
		if !strings.Contains(out, "ncacn_ip_tcp:"+world.Env("LAB_GW_IP")+"[49200,abstract_syntax=91ae6020-9e3c-11cf-8d7c-00aa00c091be") || !strings.Contains(out, "no more entries") {
			t.Errorf("%s: %s", options, out)
		}
		if said := w.LogText(&logged); !strings.Contains(said, want) {
			t.Errorf("%s: the log does not say %s", options, want+"\n"+said)
		}
	}
	// lsarpc, which it asks for by itself, is not here: EPT_S_NOT_REGISTERED (C706 appendix E).
	out, err := try(t, env, "/usr/bin/rpcclient", "--configfile="+smbConf(t), "--use-kerberos=required", "--use-krb5-ccache="+ccache(env), "-c", "epmmap", "ncacn_ip_tcp:"+world.Env("LAB_GATEWAY")+"[135,krb5,seal]")
	if err == nil || !strings.Contains(out, "0x16C9A0D6") {
		t.Errorf("%v: %s", err, out)
	}
}

// ccache is the last one, which counts.
func ccache(env []string) (path string) {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "KRB5CCNAME="); ok {
			path = v
		}
	}
	return path
}

func smbConf(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "smb.conf")
	text := "[global]\nrealm = LAB.TEST\nworkgroup = LAB\nclient min protocol = SMB2\nprivate dir = " + dir + "\nlock directory = " + dir + "\nstate directory = " + dir + "\ncache directory = " + dir + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestCertipyEnrolls runs Certipy: CERTIPY names the folder with its package.
func TestCertipyEnrolls(t *testing.T) {
	source := os.Getenv("CERTIPY")
	if source == "" {
		t.Skip("needs the source of Certipy, which no package brings (test/certipy says how to get it): name its folder in CERTIPY")
	}
	python(t, "impacket")
	start(t)
	script, err := filepath.Abs("certipy.py")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for _, way := range []string{"-dynamic-endpoint", "-dcom"} {
		out := run(t, tickets(t, "alice", "host/"+world.Env("LAB_GATEWAY")), "/usr/bin/python3", script, source, "-k", "-no-pass", "-dc-ip", world.Env("LAB_IP"), "-dc-host", world.Env("LAB_DC"),
			"-target", world.Env("LAB_GATEWAY"), "-target-ip", world.Env("LAB_GW_IP"), "-ca", world.CAName, "-template", "LabUserAuth", way, "-out", "alice"+way)
		t.Log(out)
		if !strings.Contains(out, "Successfully requested certificate") {
			t.Errorf("%s: %s", way, out)
		}
	}
}

func TestNTLMIsRefusedByName(t *testing.T) {
	need(t, "/usr/bin/rpcclient")
	w := start(t)
	for _, options := range []string{"ntlm,seal", "spnego,ntlm,seal"} {
		var logged bytes.Buffer
		w.LogTo(&logged)
		out, err := try(t, os.Environ(), "/usr/bin/rpcclient", "--configfile="+smbConf(t), "--use-kerberos=off", "-U", "LAB/alice%"+world.Env("LAB_PASSWORD"), "-c", "epmlookup",
			"ncacn_ip_tcp:"+world.Env("LAB_GATEWAY")+"[135,"+options+"]")
		if said := w.LogText(&logged); err == nil || !strings.Contains(said, "NTLM, which is not accepted") {
			t.Errorf("%s: %v %s\n%s", options, err, out, said)
		}
	}
}
