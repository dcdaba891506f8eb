package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/leavers"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"golang.org/x/sync/errgroup"
)

// Limits of the listeners. A ticket of a user in a thousand groups has 64 KiB, in base64 and with headers around it.
const (
	maxHeader       = 160 << 10
	readHeaderTime  = 10 * time.Second
	readTime        = 30 * time.Second
	writeTime       = 60 * time.Second
	idleTime        = 120 * time.Second
	shutdownTime    = 10 * time.Second
	housekeepPeriod = time.Second
)

// Run serves until ctx ends, then finishes the requests under way. ready is called once the listeners are open.
func (g *Gateway) Run(ctx context.Context, ready func()) error {
	servers, rpc, err := g.open()
	if err != nil {
		return err
	}
	if err := g.recordConfiguration(ctx); err != nil {
		return err
	}
	g.metrics.watch(g)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { g.Forest.Run(ctx); return nil })
	group.Go(func() error { g.housekeep(ctx); return nil })
	for _, signer := range g.signers {
		group.Go(func() error { g.resumeLoop(ctx, signer); return nil })
	}
	group.Go(func() error { g.signLog(ctx); return nil })
	group.Go(func() error { g.watchAgents(ctx); return nil })
	group.Go(func() error { g.watchCoverage(ctx); return nil })
	group.Go(func() error { g.watchCAs(ctx); return nil })
	if g.Config.Publish.Enabled {
		group.Go(func() error {
			stop := context.AfterFunc(ctx, g.writer.Close) // a controller that does not answer holds nobody up
			defer stop()
			g.Publisher.Run(ctx)
			return nil
		})
	}
	if g.Config.Leavers.Enabled {
		group.Go(func() error { leavers.New(g.LeaverOptions()).Run(ctx); return nil })
	}
	if len(g.Config.Escrow.Retention.Rules) > 0 {
		group.Go(func() error { g.Retention().Run(ctx); return nil })
	}
	for _, s := range servers {
		group.Go(s.serve)
	}
	for _, s := range rpc {
		group.Go(s.serve)
	}
	group.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		var errs error
		for _, s := range servers {
			errs = errors.Join(errs, s.server.Shutdown(stop))
		}
		for _, s := range rpc {
			errs = errors.Join(errs, s.server.Shutdown(stop))
		}
		return errs
	})
	if ready != nil {
		ready()
	}
	return group.Wait()
}

type listener struct {
	name   string
	server *http.Server
	l      net.Listener
}

func (s *listener) serve() error {
	if err := s.server.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s listener: %w", s.name, err)
	}
	return nil
}

// open opens every configured listener, so that a port in use is known before anything is served.
func (g *Gateway) open() ([]*listener, []*rpcListener, error) {
	var acceptor *kerberos.Acceptor
	var cert *certificateFile
	var err error
	if g.Config.Listen.HTTPS != "off" {
		if cert, err = newCertificateFile(g.Config.TLS.Certificate, g.Config.TLS.Key); err != nil {
			return nil, nil, err
		}
	}
	if g.Config.Listen.HTTPS != "off" || g.Config.Listen.RPC != "off" {
		if acceptor, err = kerberos.New(g.acceptorOptions(cert)); err != nil {
			return nil, nil, err
		}
	}
	servers, err := g.listen(acceptor, cert)
	if err != nil {
		return nil, nil, err
	}
	rpc, err := g.listenRPC(acceptor)
	if err != nil {
		for _, s := range servers {
			s.l.Close()
		}
	}
	return servers, rpc, err
}

// listen opens those for HTTP.
func (g *Gateway) listen(acceptor *kerberos.Acceptor, cert *certificateFile) (servers []*listener, err error) {
	defer func() {
		if err != nil {
			for _, s := range servers {
				s.l.Close()
			}
		}
	}()
	open := func(name, address string, h http.Handler, config *tls.Config) error {
		if address == "off" || err != nil {
			return err
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("%s listener: %w", name, err)
		}
		if config != nil {
			l = tls.NewListener(l, config)
		}
		logger := g.Log.WriterLevel(5) // debug: TLS handshake errors of port scanners
		servers = append(servers, &listener{name, &http.Server{
			Handler: h, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: readHeaderTime, ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
			ErrorLog: stdLogger(logger),
		}, l})
		g.Log.WithField("address", l.Addr().String()).Infof("%s listener is open", name)
		return nil
	}
	cfg := g.Config.Listen
	if cfg.HTTPS != "off" {
		services, err := g.enrollmentHandler(acceptor, cert)
		if err != nil {
			return nil, err
		}
		if err := open("HTTPS", cfg.HTTPS, services, g.tlsConfig(cert)); err != nil {
			return servers, err
		}
		if err := open("client certificate", cfg.Certificate, g.certificateHandler(), g.certificateTLS(cert)); err != nil {
			return servers, err
		}
	}
	if err := open("HTTP", cfg.HTTP, g.publicHandler(), nil); err != nil {
		return servers, err
	}
	return servers, open("metrics", cfg.Metrics, g.metrics.handler(), nil)
}

func (g *Gateway) acceptorOptions(cert *certificateFile) kerberos.Options {
	k := g.Config.Kerberos
	o := kerberos.Options{KeytabFile: k.Keytab, SPNs: k.ServicePrincipals, Realms: k.Realms, AllowRC4: k.AllowRC4, MaxClockSkew: k.MaxClockSkew, Log: g.Log}
	if cert != nil { // without HTTPS there is no channel to bind to
		o.ServerCertificates, o.RequireChannelBinding = cert.leaves, k.ChannelBinding
	}
	return o
}

// enrollmentHandler serves XCEP and WSTEP. Probes without credentials are answered by the SOAP handler itself.
func (g *Gateway) enrollmentHandler(acceptor *kerberos.Acceptor, cert *certificateFile) (http.Handler, error) {
	services := soap.NewHandler(backend{g, transportKerberos}, soap.Options{Log: g.Log})
	authenticated, recovery := acceptor.Middleware(services), acceptor.Middleware(g.recoveryHandler())
	var byPassword http.Handler
	if g.Config.Kerberos.PasswordLogon {
		var err error
		if byPassword, err = g.newPasswordHandler(cert); err != nil {
			return nil, err
		}
	}
	witnessing, err := g.witnessHandler()
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, witnessPath):
			witnessing.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, people.Prefix):
			recovery.ServeHTTP(w, r)
		case byPassword != nil && soap.Password.Has(r.URL.Path):
			byPassword.ServeHTTP(w, r)
		case r.Method == http.MethodPost:
			authenticated.ServeHTTP(w, r)
		case r.URL.Path == "/healthz":
			g.health(w)
		default:
			services.ServeHTTP(w, r)
		}
	}), nil
}

// health is for load balancers: 200 while decisions can be made.
func (g *Gateway) health(w http.ResponseWriter) {
	s := g.Directory.Snapshot()
	if s == nil || g.Config.Directory.MaxAge > 0 && g.now().Sub(s.Taken) > g.Config.Directory.MaxAge {
		http.Error(w, "the directory has not been read recently enough", http.StatusServiceUnavailable)
		return
	}
	send(w, "text/plain; charset=utf-8", []byte("ok\n"))
}

// tlsConfig offers no ALPN protocol: a client that asks for HTTP/1.0 or HTTP/2 is answered in HTTP/1.1, not cut off.
func (g *Gateway) tlsConfig(cert *certificateFile) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	if g.Config.TLS.MaxVersion == "1.2" {
		c.MaxVersion = tls.VersionTLS12
	}
	return c
}

// publicHandler serves what relying parties fetch without TLS: revocation lists and CA certificates.
func (g *Gateway) publicHandler() http.Handler {
	mux := http.NewServeMux()
	find := func(w http.ResponseWriter, r *http.Request, suffix string) *CA {
		name, ok := strings.CutSuffix(r.PathValue("file"), suffix)
		if ca := g.Signer(name); ok && ca != nil && ca.Local != nil {
			return ca
		}
		http.NotFound(w, r)
		return nil
	}
	mux.HandleFunc("GET /crl/{file}", func(w http.ResponseWriter, r *http.Request) {
		ca := find(w, r, ".crl")
		if ca == nil {
			return
		}
		crl, err := ca.Local.CRL(r.Context())
		if err != nil {
			g.Log.WithError(err).Error("the revocation list cannot be made")
			http.Error(w, "the revocation list is not available; try again later", http.StatusServiceUnavailable)
			return
		}
		send(w, "application/pkix-crl", crl)
	})
	mux.HandleFunc("GET /aia/{file}", func(w http.ResponseWriter, r *http.Request) {
		if ca := find(w, r, ".crt"); ca != nil {
			send(w, "application/pkix-cert", ca.Identity.Certificate().Raw)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			http.Error(w, "enrollment is served over HTTPS only: use https://"+g.Config.PublicName+r.URL.Path, http.StatusForbidden)
			return
		}
		http.NotFound(w, r)
	})
	return mux
}

func send(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body)
}

// housekeep keeps what other processes change current and makes exchange keys ahead of time.
func (g *Gateway) housekeep(ctx context.Context) {
	tick := time.NewTicker(housekeepPeriod)
	defer tick.Stop()
	for {
		g.hazards(g.Directory.Snapshot()) // so that no decision has to wait for it after a change in the directory
		if err := g.Escrow.Refresh(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("the escrow cannot be read")
		}
		if err := g.Escrow.DestroyExpired(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("old exchange keys cannot be destroyed")
		}
		if err := g.Ledger.FillNames(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("certificates cannot be made ready to be looked for")
		}
		if err := g.Cases.Expire(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("recovery cases cannot be ended")
		}
		if err := g.Batches.Expire(ctx); err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("batches cannot be ended")
		}
		if g.Escrow.Ready() == nil {
			for _, ca := range g.CAs {
				if _, err := g.Escrow.Exchange(ctx, ca.Name, ca.Identity); err != nil && ctx.Err() == nil {
					g.Log.WithError(err).Errorf("the exchange certificate of CA %q cannot be renewed", ca.Name)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
