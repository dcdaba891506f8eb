package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/rpc/epm"
	"github.com/enrollgate/enrollgate/gateway/rpc/icpr"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
)

// rpcListener is one TCP port of RPC.
type rpcListener struct {
	server *server.Server
	l      net.Listener
}

func (r *rpcListener) serve() error {
	if err := r.server.Serve(r.l); !errors.Is(err, server.ErrClosed) {
		return err
	}
	return nil
}

// listenRPC opens the port of ICertPassage and that of the endpoint mapper, where they are configured. With both there is DCOM.
func (g *Gateway) listenRPC(acceptor *kerberos.Acceptor) (out []*rpcListener, err error) {
	if g.Config.Listen.RPC == "off" {
		return nil, nil
	}
	defer func() {
		if err != nil {
			for _, r := range out {
				r.l.Close()
			}
		}
	}()
	accept := acceptor.ForRPC()
	open := func(name, address string) (*server.Server, net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, nil, fmt.Errorf("%s listener: %w", name, err)
		}
		s := server.New(server.Options{Name: name, Acceptor: accept, Log: g.Log, Observer: g.metrics.rpc})
		out = append(out, &rpcListener{s, l})
		g.Log.WithField("address", l.Addr().String()).Infof("%s listener is open", name)
		return s, l, nil
	}
	calls, l, err := open("RPC", g.Config.Listen.RPC)
	if err != nil {
		return out, err
	}
	calls.Register(icpr.Interface(rpcBackend{g}))
	if g.Config.Listen.EPM == "off" {
		return out, nil
	}
	at := l.Addr().(*net.TCPAddr)
	mapper, _, err := open("endpoint mapper", g.Config.Listen.EPM)
	if err != nil {
		return out, err
	}
	entries := []epm.Entry{{Syntax: icpr.Syntax, Port: uint16(at.Port), Annotation: "Certificate enrollment (MS-ICPR)"}} //nolint:gosec // a TCP port
	mapper.Register(epm.Interface(func() []epm.Entry { return entries }))
	return out, g.serveDCOM(calls, mapper, at)
}

// rpcBackend lets the RPC interfaces call the gateway.
type rpcBackend struct{ g *Gateway }

// CA finds a CA by its name or its sanitized short name ([MS-WCCE] 3.1.1.4.1.1), in any case.
func (b rpcBackend) CA(authority string) string {
	for _, ca := range b.g.CAs {
		if strings.EqualFold(ca.Name, authority) || strings.EqualFold(wcce.SanitizedShortName(ca.Name), authority) {
			return ca.Name
		}
	}
	return ""
}

func (b rpcBackend) Enroll(ctx context.Context, caller templates.Caller, ca string, attributes []wcce.NameValue, der []byte) (*request.Reply, error) {
	r, err := b.g.Enroll(ctx, Submission{Caller: caller, CA: ca, Transport: transportRPC, Request: der, Attributes: attributes})
	return b.reply(ctx, r, err)
}

func (b rpcBackend) reply(ctx context.Context, r *Reply, err error) (*request.Reply, error) {
	if err != nil {
		if refusal, ok := errors.AsType[*Refusal](err); ok {
			return nil, &request.Refusal{Err: refusal.Err, RequestID: refusal.RequestID}
		}
		return nil, err
	}
	out := &request.Reply{RequestID: r.RequestID, Pending: r.State != ledger.Issued, Message: r.Message, Full: r.Full}
	if r.Certificate != nil {
		out.Certificate, out.CRLs = r.Certificate.Raw, func() [][]byte { return b.g.crlsFor(ctx, r.Chain) }
		if out.CertsOnly, err = wcce.CertsOnly(r.Certificate, r.Chain); err != nil {
			return nil, fmt.Errorf("request %d: response: %w", r.RequestID, err)
		}
	}
	return out, nil
}

// rpcMetrics implements server.Observer.
type rpcMetrics struct {
	connections *prometheus.GaugeVec
	calls       *prometheus.HistogramVec
	refusals    *prometheus.CounterVec
}

func newRPCMetrics(r *prometheus.Registry) *rpcMetrics {
	m := &rpcMetrics{
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "enrollgate_rpc_connections", Help: "Open RPC connections."}, []string{"listener"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "enrollgate_rpc_call_duration_seconds",
			Help:    "Time of RPC calls, by outcome: ok, issued, pending, or the HRESULT or the fault that the client was told.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"interface", "operation", "outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "enrollgate_rpc_refusals_total",
			Help: "RPC connections and calls that were refused before anything was run: ntlm, ticket, token, level, protocol, slow, busy, congestion, displaced."},
			[]string{"listener", "reason"}),
	}
	r.MustRegister(m.connections, m.calls, m.refusals)
	return m
}

func (m *rpcMetrics) Connections(listener string, change int) {
	m.connections.WithLabelValues(listener).Add(float64(change))
}

func (m *rpcMetrics) Called(iface, operation, outcome string, took time.Duration) {
	m.calls.WithLabelValues(iface, operation, outcome).Observe(took.Seconds())
}

func (m *rpcMetrics) Refused(listener, reason string) {
	m.refusals.WithLabelValues(listener, reason).Inc()
}
