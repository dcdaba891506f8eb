package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/test/world"
)

func TestTheSameRequestTwiceAtOnceGivesOneCertificate(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	der, _ := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	var mu sync.Mutex
	var certs [][]byte
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			reply, err := alice.Submit(t, der)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			certs = append(certs, reply.Certificate)
		})
	}
	wg.Wait()
	for _, c := range certs {
		if !bytes.Equal(c, certs[0]) {
			t.Error("two certificates")
		}
	}
	rows, err := w.Ledger.List(background, ledger.Issued, 100)
	entries, err2 := w.Escrow.List(background, "", 100)
	if err != nil || err2 != nil || len(rows) != 1 || len(entries) != 1 {
		t.Errorf("%d requests, %d archived keys, %v, %v", len(rows), len(entries), err, err2)
	}
}

func TestHugeAndSlowRequestsDoNotHurt(t *testing.T) {
	w := world.Start(t)
	alice := w.Client(t, "alice")
	t.Run("a body of 100 MB", func(t *testing.T) {
		for _, chunked := range []bool{false, true} {
			token, err := alice.Kerberos.Token("HTTP/" + world.Env("LAB_GATEWAY"))
			if err != nil {
				t.Fatal(err)
			}
			var body io.Reader = io.LimitReader(endless{}, 100<<20)
			req, err := http.NewRequest(http.MethodPost, alice.CES, body)
			if err != nil {
				t.Fatal(err)
			}
			if !chunked {
				req.ContentLength = 100 << 20
			}
			req.Header.Set("Content-Type", "application/soap+xml")
			req.Header.Set("Authorization", negotiate(token))
			resp, err := w.HTTP().Do(req)
			if err != nil {
				continue // the listener hung up in the middle, which is as good
			}
			resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Errorf("%s", resp.Status)
			}
		}
	})
	for name, sent := range map[string]string{
		"slow headers are cut off": "POST / HTTP/1.1\r\nHost: ",
		"slow bodies are cut off": "POST " + soap.Kerberos.CEPPath + " HTTP/1.1\r\nHost: " + world.Env("LAB_GATEWAY") +
			"\r\nContent-Type: application/soap+xml\r\nContent-Length: 100000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := tls.Dial("tcp", world.Env("LAB_GW_IP")+":443", &tls.Config{RootCAs: w.Roots, ServerName: world.Env("LAB_GATEWAY")})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, sent); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = io.Copy(io.Discard, c)
			}()
			for time.Since(begin) < 45*time.Second {
				select {
				case <-ended:
					t.Logf("cut off after %s", time.Since(begin).Round(time.Second))
					return
				case <-time.After(500 * time.Millisecond):
					_, _ = io.WriteString(c, "x") // just enough to stay alive
				}
			}
			t.Errorf("still open after %s", time.Since(begin))
		})
	}
}

func TestTenThousandIdleConnections(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	alice := w.Client(t, "alice")
	enroll := func() time.Duration {
		begin := time.Now()
		if _, err := alice.Submit(t, first(world.Request(t, "LabUserAuth", nil))); err != nil {
			t.Error(err)
		}
		return time.Since(begin)
	}
	enroll()
	before := p.Memory(t)
	const n = 10_000
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		c, err := net.Dial("tcp", world.Env("LAB_GW_IP")+":443")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	took := enroll()
	after := p.Memory(t)
	t.Logf("%d idle connections: memory %d MiB, before %d MiB; an enrollment with a new key took %s", n, after>>20, before>>20, took.Round(time.Millisecond))
	if after > 512<<20 {
		t.Errorf("the gateway uses %d MiB", after>>20)
	}
}

// endless is a body without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// What foreign HTTP clients do, done by curl.
func TestCurlSpeaksHTTPInEveryWay(t *testing.T) {
	w := world.Start(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(env []string, stdin, name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(background, 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env, cmd.Stdin = append(os.Environ(), env...), strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	cache := []string{"KRB5CCNAME=FILE:" + dir + "/cc"}
	if out, err := run(cache, world.Env("LAB_PASSWORD")+"\n", "kinit", "alice"); err != nil {
		t.Fatal(out, err)
	}
	body := dir + "/body.xml" // what cepces sends
	recorded, err := os.ReadFile("../../gateway/soap/testdata/cepces-getpolicies.request.xml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(body, recorded, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, extra := range map[string][]string{
		"plainly":                     nil,
		"with Expect: 100-continue":   {"-H", "Expect: 100-continue"},
		"in chunks":                   {"-H", "Transfer-Encoding: chunked"},
		"over TLS 1.2":                {"--tls-max", "1.2"},
		"over TLS 1.3":                {"--tlsv1.3"},
		"twice on one connection":     {"-o", dir + "/second", "https://" + world.Env("LAB_GATEWAY") + soap.Kerberos.CEPPath},
		"with HTTP/1.0 and no reuse":  {"--http1.0"},
		"with the name in upper case": {"--resolve", "ENROLL.LAB.TEST:443:" + world.Env("LAB_GW_IP")},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-sS", "--cacert", world.Env("LAB_CA_PEM"), "--negotiate", "-u", ":", "-w", "\n%{http_code}", "-H", "Content-Type: application/soap+xml; charset=utf-8", "--data-binary", "@" + body}, extra...)
			out, err := run(cache, "", "curl", append(args, "https://"+world.Env("LAB_GATEWAY")+soap.Kerberos.CEPPath)...)
			if err != nil || !strings.Contains(out, "200") || !strings.Contains(out, "LabUserSMIME") {
				t.Errorf("%v\n%.600s", err, out)
			}
		})
	}
	_ = w
}

func TestOptionsCapTLSAt12(t *testing.T) {
	w := world.StartWith(t, "tls: {certificate: "+world.Env("LAB_TLS_PEM")+", key: "+world.Env("LAB_TLS_KEY")+", max_version: \"1.2\"}")
	c, err := tls.Dial("tcp", world.Env("LAB_GW_IP")+":443", &tls.Config{RootCAs: w.Roots, ServerName: world.Env("LAB_GATEWAY")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v := c.ConnectionState().Version; v != tls.VersionTLS12 {
		t.Errorf("TLS version %x", v)
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	w := world.Start(t)
	var log bytes.Buffer
	w.LogTo(&log)
	alice := w.Client(t, "alice")
	der, key := world.Request(t, "LabUserSMIME", alice.Exchange(t))
	if _, err := alice.Submit(t, der); err != nil {
		t.Fatal(err)
	}
	foreign, _ := world.Request(t, "LabUserSMIME", w.Agent)
	if _, err := alice.Submit(t, foreign); err == nil {
		t.Fatal("a key sealed to somebody else was accepted")
	}
	token, err := alice.Kerberos.Token("HTTP/" + world.Env("LAB_GATEWAY"))
	if err != nil {
		t.Fatal(err)
	}
	postWith(t, w, alice.CEP, token)
	text := w.LogText(&log)
	if !strings.Contains(text, "alice@LAB.TEST") || !strings.Contains(text, "request") {
		t.Errorf("the log has no line of the requests:\n%s", text)
	}
	for name, secret := range map[string][]byte{"password": []byte(world.Env("LAB_PASSWORD")), "passphrase": []byte("passphrase"),
		"prime": key.Primes[0].Bytes(), "exponent": key.D.Bytes(), "ticket": token} {
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), b64(secret), b64(slices.Clone(secret[:min(len(secret), 24)]))[:min(len(secret), 24)]} {
			if strings.Contains(text, form) {
				t.Errorf("the log holds the %s", name)
			}
		}
	}
}
