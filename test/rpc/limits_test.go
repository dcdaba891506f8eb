package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	gatewayconfig "github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/rpc/icpr"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/world"
)

// nothing is a gateway that says at once that the request is pending.
type nothing struct{}

func (nothing) CA(name string) string { return name }
func (nothing) Enroll(context.Context, templates.Caller, string, []wcce.NameValue, []byte) (*request.Reply, error) {
	return &request.Reply{RequestID: 1, Pending: true, Message: "Taken Under Submission"}, nil
}
func (n nothing) PollSerial(ctx context.Context, c templates.Caller, _, serial string) (*request.Reply, error) {
	return n.Poll(ctx, c, serial)
}

func (n nothing) Poll(ctx context.Context, c templates.Caller, _ string) (*request.Reply, error) {
	return n.Enroll(ctx, c, "", nil, nil)
}

// bare runs the RPC server alone, at the port where the gateway has it.
func bare(t testing.TB, change func(*server.Options)) {
	t.Helper()
	inlab.Need(t)
	a, err := kerberos.New(kerberos.Options{KeytabFile: world.Env("LAB_KEYTAB_SVC")})
	if err != nil {
		t.Fatal(err)
	}
	o := server.Options{Name: "RPC", Acceptor: a.ForRPC()}
	if change != nil {
		change(&o)
	}
	s := server.New(o)
	s.Register(icpr.Interface(nothing{}))
	l, err := net.Listen("tcp", rpcAddress())
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s, l)
}

// serve runs a server until the test ends.
func serve(t testing.TB, s *server.Server, l net.Listener) {
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(background, 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, server.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestOneAccountHasItsShare(t *testing.T) {
	bare(t, func(o *server.Options) { o.MaxPerCaller, o.MaxConnections = 3, 5 })
	for range 3 {
		mustDial(t, "alice", how{port: true})
	}
	if _, err := dial(t, "alice", how{port: true}); err == nil {
		t.Error("a fourth connection of alice's")
	}
	// Those who have proven nothing make room for those who do.
	for range 20 {
		c, err := net.Dial("tcp", rpcAddress())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if out := ask(t, mustDial(t, "bob", how{port: true}), &icertpassage.CertServerRequestRequest{Request: blob(csr(t))}); out.Disposition != 5 {
		t.Errorf("bob: disposition 0x%x", out.Disposition)
	}
}

func TestLogAndMetricsTellOfCalls(t *testing.T) {
	w := world.StartChanged(t, "", func(c *gatewayconfig.Config) {
		c.Listen.RPC, c.Listen.EPM, c.Listen.Metrics = rpcAddress(), world.Env("LAB_GW_IP")+":135", world.Env("LAB_GW_IP")+":9464"
		c.Log.Format = "json"
	})
	var logged bytes.Buffer
	w.LogTo(&logged)
	c := mustDial(t, "alice", how{})
	ask(t, c, &icertpassage.CertServerRequestRequest{Attributes: template("LabUserAuth"), Request: blob(csr(t))})
	ask(t, c, &icertpassage.CertServerRequestRequest{Attributes: template("LabMachine"), Request: blob(csr(t))})
	time.Sleep(200 * time.Millisecond)
	var issued, denied bool
	for line := range strings.Lines(w.LogText(&logged)) {
		if strings.Contains(line, `"RPC call"`) && strings.Contains(line, `"caller":"alice@LAB.TEST"`) && strings.Contains(line, `"operation":"CertServerRequest"`) && strings.Contains(line, `"request":`) {
			issued = issued || strings.Contains(line, `"code":"issued"`)
			denied = denied || strings.Contains(line, `"code":"CERTSRV_E_TEMPLATE_DENIED"`)
		}
	}
	if !issued || !denied {
		t.Errorf("issued %v, denied %v: %s", issued, denied, logged.String())
	}
	reply, err := http.Get("http://" + world.Env("LAB_GW_IP") + ":9464/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	text, _ := io.ReadAll(reply.Body)
	for _, line := range []string{
		`enrollgate_rpc_call_duration_seconds_count{interface="ICertPassage",operation="CertServerRequest",outcome="issued"} 1`,
		`enrollgate_rpc_call_duration_seconds_count{interface="ICertPassage",operation="CertServerRequest",outcome="CERTSRV_E_TEMPLATE_DENIED"} 1`,
		`enrollgate_rpc_connections{listener="RPC"} 1`,
		`enrollgate_rpc_call_duration_seconds_count{interface="epmapper",operation="ept_lookup",outcome="ok"}`,
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %s in the metrics", line)
		}
	}
}

// BenchmarkSealedCalls is a call of 1 kB with go-msrpc's client, without what the gateway does.
func BenchmarkSealedCalls(b *testing.B) {
	bare(b, nil)
	c := mustDial(b, "alice", how{port: true})
	der := csr(b)
	for b.Loop() {
		ask(b, c, &icertpassage.CertServerRequestRequest{Request: blob(der)})
	}
}
