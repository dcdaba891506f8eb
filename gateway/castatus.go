package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/status"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/ocsp"
)

// CAStatus is how a CA is.
type CAStatus struct {
	Name      string      `json:"name"`
	Driver    string      `json:"driver"`
	Published bool        `json:"published"`
	State     string      `json:"state"` // answers, silent, or left alone
	Error     string      `json:"error,omitempty"`
	Subject   string      `json:"subject,omitempty"`
	NotAfter  time.Time   `json:"not_after,omitzero"`
	Waiting   int64       `json:"waiting"`  // orders
	InDoubt   int64       `json:"in_doubt"` // orders
	Oldest    time.Time   `json:"oldest,omitzero"`
	CRL       *Revocation `json:"crl,omitempty"`  // nil where nothing is issued yet
	OCSP      *Revocation `json:"ocsp,omitempty"` // nil where certificates name no responder
	Advice    []string    `json:"advice,omitempty"`

	issuing, newest *x509.Certificate // of the CA, and what it has issued last; nil where not known
}

// Revocation is what became of asking for a revocation list, or a responder about the newest certificate.
type Revocation struct {
	URL        string    `json:"url,omitempty"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	Status     string    `json:"status,omitempty"` // good, revoked or unknown, of OCSP
	Error      string    `json:"error,omitempty"`

	list []byte // in DER, where it is good and not too large to keep
}

// maxKeptCRL is the largest revocation list of another CA that is kept for clients who ask for it over RPC.
const maxKeptCRL = 1 << 20

// endsSoon is how long before its end a CA certificate is spoken of.
const endsSoon = 30 * 24 * time.Hour

// CAStatus looks at every CA, asks for their revocation lists and compares their chains with what the forest publishes.
func (g *Gateway) CAStatus(ctx context.Context) ([]CAStatus, error) {
	queues, err := g.Ledger.Queues(ctx)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: status.Timeout}
	out := []CAStatus{}
	for _, ca := range g.signers {
		s := CAStatus{Name: ca.Name, Driver: ca.Driver, Published: g.CA(ca.Name) == ca, State: "answers"}
		for _, q := range queues {
			if strings.EqualFold(q.Issuer, ca.Name) {
				s.Waiting, s.InDoubt, s.Oldest = q.Waiting, q.Doubt, q.Oldest
			}
		}
		chain, err := ca.Issuer.Chain(ctx)
		switch {
		case err != nil:
			s.State, s.Error = "silent", err.Error()
		case ca.Limits.Down():
			s.State = "left alone"
		}
		if len(chain) > 0 {
			if err := g.rememberChain(ctx, ca.Name, chain); err != nil {
				return nil, err
			}
			s.issuing = chain[0]
			s.Subject, s.NotAfter = dn.Show(chain[0].RawSubject), chain[0].NotAfter.UTC()
			if err := g.askAboutNewest(ctx, client, ca, chain, &s); err != nil {
				return nil, err
			}
		}
		s.Advice = g.caAdvice(ca, chain, &s)
		out = append(out, s)
	}
	for _, q := range queues {
		if g.Signer(q.Issuer) == nil {
			out = append(out, CAStatus{Name: q.Issuer, State: "not configured", Waiting: q.Waiting, InDoubt: q.Doubt, Oldest: q.Oldest,
				Advice: []string{"requests wait for it: put it back into the configuration, with published: false where no new ones shall go to it"}})
		}
	}
	g.caStatus.Store(&out)
	return out, nil
}

// askAboutNewest looks at revocation with the help of the certificate that the CA has issued last.
func (g *Gateway) askAboutNewest(ctx context.Context, client *http.Client, ca *CA, chain []*x509.Certificate, s *CAStatus) error {
	row, err := g.Ledger.NewestOf(ctx, ca.Name)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(row.Certificate)
	if err != nil {
		return fmt.Errorf("request %d: stored certificate: %w", row.ID, err)
	}
	s.newest = cert
	above := g.chainFor(ca.Name, chain, cert)
	s.CRL = &Revocation{}
	list, url, err := status.FetchCRL(ctx, client, cert, above[0], g.now())
	s.CRL.URL = url
	if list != nil {
		s.CRL.NextUpdate = list.NextUpdate.UTC()
	}
	if err != nil {
		s.CRL.Error = err.Error()
	} else if len(list.Raw) <= maxKeptCRL {
		s.CRL.list = list.Raw
	}
	answer, url, err := status.AskOCSP(ctx, client, cert, above[0])
	if url == "" {
		return nil
	}
	s.OCSP = &Revocation{URL: url}
	if err != nil {
		s.OCSP.Error = err.Error()
		return nil
	}
	s.OCSP.NextUpdate, s.OCSP.Status = answer.NextUpdate.UTC(), "unknown"
	switch answer.Status {
	case ocsp.Good:
		s.OCSP.Status = "good"
	case ocsp.Revoked:
		s.OCSP.Status = "revoked"
	}
	return nil
}

// AdviceNoRevocation is about what a CA cannot do, which is no fault.
const AdviceNoRevocation = "the gateway cannot revoke its certificates: revoke them at the CA"

// caAdvice says what is wrong with a CA, or will be, and what to do.
func (g *Gateway) caAdvice(ca *CA, chain []*x509.Certificate, s *CAStatus) (out []string) {
	say := func(when bool, format string, args ...any) {
		if when {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(s.InDoubt > 0, "nobody can tell of %d orders whether the CA has issued: see enrollgate requests list --in-doubt", s.InDoubt)
	if s.CRL != nil {
		say(s.CRL.Error != "", "its revocation list cannot be had: %s", s.CRL.Error)
	}
	if s.OCSP != nil {
		say(s.OCSP.Error != "", "its OCSP responder %s gives no good answer: %s", s.OCSP.URL, s.OCSP.Error)
	}
	for i, c := range chain {
		left := c.NotAfter.Sub(g.now())
		say(left < endsSoon, "the certificate %s of its chain ends on %s: renew it", dn.Show(c.RawSubject), c.NotAfter.Format(time.DateOnly))
		say(i == 0 && upstream.TraitsOf(ca.Issuer).NoRevocation && left > 0, AdviceNoRevocation)
	}
	if snapshot := g.Directory.Snapshot(); snapshot != nil && len(chain) > 0 {
		out = append(out, forestAdvice(snapshot, chain)...)
	}
	return out
}

// forestAdvice compares a chain with what the forest publishes for domain members: NTAuthCertificates for logon, the trusted roots,
// and the intermediate certificates ([MS-WCCE] 2.2.2.11).
func forestAdvice(s *templates.Snapshot, chain []*x509.Certificate) (out []string) {
	if !slices.ContainsFunc(s.NTAuth, chain[0].Equal) {
		out = append(out, "the forest does not accept its certificates for logon; where they are for that: certutil -dspublish -f CERTIFICATE NTAuthCA")
	}
	in := func(container string, c *x509.Certificate) bool {
		return slices.ContainsFunc(s.PKI, func(o templates.PKIObject) bool {
			return strings.Contains(strings.ToLower(o.DN), ",cn="+container+",") && slices.ContainsFunc(o.Certificates, c.Equal)
		})
	}
	for _, c := range chain {
		root := issuedBy(c, c)
		switch {
		case root && !in("certification authorities", c):
			out = append(out, fmt.Sprintf("domain members do not trust its root %s: certutil -dspublish -f CERTIFICATE RootCA", dn.Show(c.RawSubject)))
		case !root && !in("aia", c):
			out = append(out, fmt.Sprintf("domain members do not get its certificate %s: certutil -dspublish -f CERTIFICATE SubCA", dn.Show(c.RawSubject)))
		}
	}
	return out
}

// How often CAs are looked at, and the log says what is wrong.
const (
	caPeriod  = 10 * time.Minute
	caLogEach = 24 * time.Hour
)

// watchCAs looks at the CAs from time to time.
func (g *Gateway) watchCAs(ctx context.Context) {
	var logged time.Time
	for {
		list, err := g.CAStatus(ctx)
		if err != nil && ctx.Err() == nil {
			g.Log.WithError(err).Error("the state of the CAs cannot be told")
		}
		if now := g.now(); err == nil && now.Sub(logged) >= caLogEach {
			logged = now
			for _, s := range list {
				for _, text := range s.Advice {
					g.Log.WithField("ca", s.Name).Warn(text)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(caPeriod):
		}
	}
}
