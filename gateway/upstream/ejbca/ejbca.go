// Package ejbca issues through Keyfactor's EJBCA, over its REST interface.
//
// There are two ways, of which the administrator chooses one. With an end entity (/v1/endentity, which EJBCA Enterprise has) subject,
// alternative names, end and custom extensions travel beside the request: the driver registers an end entity of its own for each order, and
// then asks for its certificate (/v1/certificate/certificaterequest). EJBCA gives an end entity one certificate: once it has that, its
// status is GENERATED and its password is used up. So an order never gets a second one, however often it is sent. With the request alone
// (/v1/certificate/pkcs10enroll, also in EJBCA Community) names and extensions come from the request; one of Windows has none unless the
// template lets the enrollee supply them, and other orders are refused by name.
//
// What an end entity is called is derived from the order, and the certificates of an end entity can be searched: that is how a lost answer
// is settled. The certificate profile has to store certificates. After a lost pkcs10enroll EJBCA may still be working on the order while
// nothing is found: it is pending then, and may be submitted again only when no request can be under way any more.
//
// Key usage, extended key usage and policies are the certificate profile's; they are compared with the decision when the certificate comes.
// EJBCA puts the attributes of a subject in an order of its own, from the most general (the profile's LDAP DN order switched off) or from
// the most special one; a certificate in which it is not the decided order is refused by the gateway.
//
// An approval at EJBCA leaves the order pending.
package ejbca

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/settle"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// Options configure the driver.
type Options struct {
	Name               string      // of the CA, for messages
	URL                string      // https://HOST[:PORT]/ejbca/ejbca-rest-api
	TLS                *tls.Config // whom to trust, and the client certificate, which EJBCA has a role for
	Roots              []*x509.Certificate
	CA                 string // as EJBCA calls it
	CertificateProfile string
	EndEntityProfile   string
	// FromRequest takes names and extensions from the request (pkcs10enroll), in place of an end entity that is made for the order.
	FromRequest bool
	// FromProfile are extensions, by OID, that the certificate profile adds just as they are decided, besides key usage, extended key
	// usage and policies.
	FromProfile []string
	// Extensions are custom certificate extensions, by OID, that are defined in EJBCA with raw encoding and a dynamic value.
	Extensions []string
	// NoEnd leaves it to the certificate profile when certificates end: the end entity profile does not have a validity end time.
	NoEnd     bool
	Secret    []byte // of which the passwords of end entities are made; the same for all instances
	Tolerance upstream.Tolerance
	ChainFile string        // keeps the CA's chain for when it cannot be asked; "" keeps it in memory only
	Timeout   time.Duration // of one HTTP request; default 15 s
	Settled   time.Duration // how long after a lost answer no request can be under way any more; default settle.Default
	Now       func() time.Time
}

// CA is an EJBCA server. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o     Options
	web   *web.Client
	chain *chain.Keeper
	lost  *settle.Orders
}

// New checks the options. It does not connect: a CA that is down must not keep the gateway from starting.
func New(o Options) (*CA, error) {
	if o.CA == "" || o.CertificateProfile == "" || o.EndEntityProfile == "" {
		return nil, fmt.Errorf("CA %q: the names of CA, certificate profile and end entity profile are needed, as EJBCA has them", o.Name)
	}
	if len(o.Secret) < 16 {
		return nil, fmt.Errorf("CA %q: no secret to make passwords of", o.Name)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	client, err := web.New(web.Options{CA: o.Name, URL: o.URL, TLS: o.TLS, Timeout: o.Timeout})
	if err != nil {
		return nil, err
	}
	ca := &CA{o: o, web: client, lost: settle.New(o.Settled, o.Now)}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Fetch: ca.fetchChain, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tells what this configuration can take.
func (ca *CA) Traits() upstream.Traits {
	t := upstream.Traits{Product: product, Names: upstream.NamesBeside, Repetition: upstream.RepeatFound}
	if ca.o.FromRequest {
		t.Names = upstream.NamesInCSR
	}
	return t
}

const product = "EJBCA"

// Check refuses an order that cannot be put into EJBCA's words.
func (ca *CA) Check(order upstream.Order) error {
	_, err := upstream.SignedCSR(order, "an EJBCA")
	if err != nil {
		return fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if ca.o.FromRequest {
		err = upstream.CarriedByCSR(order, slices.Concat(profiled, ca.o.FromProfile, ca.o.Tolerance.Missing, ca.o.Tolerance.Changed))
	} else {
		_, err = ca.entity(order)
	}
	if err != nil {
		return fmt.Errorf("CA %q is an EJBCA: %w", ca.o.Name, err)
	}
	return nil
}

// username is what EJBCA calls the end entity of an order; password is derived from it.
func (ca *CA) username(order upstream.Order) (string, error) {
	profile, err := json.Marshal(order.Profile)
	if err != nil {
		return "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(order.ID), profile, spki} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":"))
		h.Write(part)
	}
	return "enrollgate-" + hex.EncodeToString(h.Sum(nil)[:16]), nil
}

func (ca *CA) password(username string) string {
	m := hmac.New(sha256.New, ca.o.Secret)
	m.Write([]byte("enrollgate ejbca password " + username))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// Submit asks for the certificate.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	if err := ca.chain.Ready(ctx); err != nil {
		return upstream.Result{}, err
	}
	user, err := ca.username(order)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(ca.wrap(err))
	}
	var r upstream.Result
	if ca.o.FromRequest {
		r, err = ca.pkcs10(ctx, order, user)
	} else {
		r, err = ca.byEntity(ctx, order, user)
	}
	if err != nil {
		return upstream.Result{}, ca.wrap(err)
	}
	return r, nil
}

func (ca *CA) wrap(err error) error { return fmt.Errorf("CA %q: %w", ca.o.Name, err) }

// byEntity registers the order's end entity, if it is not there, and asks for its certificate.
func (ca *CA) byEntity(ctx context.Context, order upstream.Order, user string) (upstream.Result, error) {
	entity, err := ca.entity(order)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	entity["username"], entity["password"] = user, ca.password(user)
	a, err := ca.post(ctx, "/v1/endentity", entity)
	if err != nil {
		return upstream.Result{}, upstream.NotIssued(err) // without its own request no end entity gets a certificate
	}
	switch {
	case a.Status == http.StatusAccepted:
		return pending(a)
	case !a.OK():
		status, err := ca.entityStatus(ctx, user)
		if err != nil {
			return upstream.Result{}, upstream.NotIssued(fmt.Errorf("register the end entity: %w; and look for it: %w", a.Fail(product, describe(a.Body)), err))
		}
		if status == "" {
			r, err := ca.refused(a)
			if err != nil {
				err = upstream.NotIssued(fmt.Errorf("register the end entity: %w", err))
			}
			return r, err
		}
	}
	return ca.request(ctx, order, user)
}

// request asks for the certificate of an end entity. Where EJBCA says no it may have given the certificate before.
func (ca *CA) request(ctx context.Context, order upstream.Order, user string) (upstream.Result, error) {
	a, err := ca.post(ctx, "/v1/certificate/certificaterequest", map[string]any{"certificate_request": inPEM(order.CSR), "username": user, "password": ca.password(user),
		"include_chain": true, "certificate_authority_name": ca.o.CA})
	if err != nil {
		return upstream.Result{}, err
	}
	if a.OK() || a.Status/100 != 4 || a.Status == http.StatusTooManyRequests {
		return ca.answered(ctx, order, a)
	}
	if r, err := ca.search(ctx, order, user); err != nil || r.State == upstream.Issued {
		return r, err
	}
	status, err := ca.entityStatus(ctx, user)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("%w; and look for its end entity: %w", a.Fail(product, describe(a.Body)), err)
	}
	if status == "GENERATED" {
		return upstream.Result{}, fmt.Errorf("its end entity %s has a certificate, which EJBCA does not find: its certificate profile %q has to store certificates, and the gateway's role to see them",
			user, ca.o.CertificateProfile)
	}
	return ca.refused(a)
}

// pkcs10 asks for a certificate with the names of the request.
func (ca *CA) pkcs10(ctx context.Context, order upstream.Order, user string) (upstream.Result, error) {
	a, err := ca.post(ctx, "/v1/certificate/pkcs10enroll", map[string]any{"certificate_request": inPEM(order.CSR), "certificate_profile_name": ca.o.CertificateProfile,
		"end_entity_profile_name": ca.o.EndEntityProfile, "certificate_authority_name": ca.o.CA, "username": user, "password": ca.password(user), "include_chain": true})
	var r upstream.Result
	if err == nil {
		r, err = ca.answered(ctx, order, a)
	}
	if err != nil && !upstream.IsNotIssued(err) {
		ca.lost.Lost(order.ID)
	}
	return r, err
}

// answered reads the answer to a request for a certificate.
func (ca *CA) answered(ctx context.Context, order upstream.Order, a *web.Answer) (upstream.Result, error) {
	switch {
	case a.Status == http.StatusAccepted:
		return pending(a)
	case !a.OK():
		return ca.refused(a)
	}
	var answer certificateAnswer
	if err := json.Unmarshal(a.Body, &answer); err != nil {
		return upstream.Result{}, fmt.Errorf("the answer of %s: %w", product, err)
	}
	cert, above, err := answer.read()
	if err != nil {
		return upstream.Result{}, fmt.Errorf("the answer of %s: %w", product, err)
	}
	if !sameKey(order, cert) {
		return upstream.Result{}, errors.New("the certificate in the answer is for another key")
	}
	if err := ca.chain.Check(ctx, cert, above); err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

func sameKey(order upstream.Order, cert *x509.Certificate) bool {
	key, ok := order.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(cert.PublicKey)
}

// pending reads what an order that waits for an approval is called.
func pending(a *web.Answer) (upstream.Result, error) {
	var answer struct {
		RequestID int64 `json:"request_id"`
	}
	if err := json.Unmarshal(a.Body, &answer); err != nil || answer.RequestID == 0 {
		return upstream.Result{}, errors.New("EJBCA lets the order wait for an approval, and does not say which")
	}
	return upstream.Result{State: upstream.Pending, Token: tokenPrefix + strconv.FormatInt(answer.RequestID, 10)}, nil
}

// tokenPrefix is before the number of a request for approval.
const tokenPrefix = "approval:"

// refused tells what an answer that is no success means: those about who asks, or about names of EJBCA's own, are not about the order.
func (ca *CA) refused(a *web.Answer) (upstream.Result, error) {
	err := a.Fail(product, describe(a.Body))
	switch a.Status {
	case http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		if e, ok := errors.AsType[*web.StatusError](err); ok {
			return upstream.Result{State: upstream.Refused, Reason: e.Message}, nil
		}
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType:
		return upstream.Result{}, upstream.NotIssued(err)
	}
	if a.Status/100 == 3 {
		return upstream.Result{}, upstream.NotIssued(err)
	}
	return upstream.Result{}, err
}

// reasons are the words that EJBCA has for a CRLReason (RFC 5280 5.3.1).
var reasons = map[int]string{0: "UNSPECIFIED", 1: "KEY_COMPROMISE", 2: "CA_COMPROMISE", 3: "AFFILIATION_CHANGED", 4: "SUPERSEDED", 5: "CESSATION_OF_OPERATION",
	6: "CERTIFICATE_HOLD", 8: "REMOVE_FROM_CRL", 9: "PRIVILEGES_WITHDRAWN", 10: "AA_COMPROMISE"}

// Revoke revokes a certificate. Revoking twice is no error.
func (ca *CA) Revoke(ctx context.Context, serial *big.Int, reason int) error {
	word, ok := reasons[reason]
	if !ok {
		return fmt.Errorf("revocation reason %d is not a CRLReason", reason)
	}
	above, err := ca.chain.Get(ctx)
	if err != nil {
		return err
	}
	issuer, err := subjectText(above[0].RawSubject)
	if err != nil {
		return fmt.Errorf("CA %q: its own name: %w", ca.o.Name, err)
	}
	a, err := ca.web.Do(ctx, web.Request{Method: http.MethodPut, Accept: "application/json",
		Path: "/v1/certificate/" + url.PathEscape(issuer) + "/" + serial.Text(16) + "/revoke?reason=" + word})
	switch {
	case err != nil:
	case a.Status == http.StatusConflict: // it is revoked
	case a.Status == http.StatusAccepted:
		err = errors.New("EJBCA waits for an approval before it revokes")
	case !a.OK():
		err = a.Fail(product, describe(a.Body))
	}
	if err != nil {
		return fmt.Errorf("CA %q: revoke %s: %w", ca.o.Name, serial.Text(16), err)
	}
	return nil
}

// Chain returns the issuing certificate and those above it.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }

func (ca *CA) fetchChain(ctx context.Context) ([]*x509.Certificate, error) {
	var list struct {
		CAs []struct {
			Name    string `json:"name"`
			Subject string `json:"subject_dn"`
		} `json:"certificate_authorities"`
	}
	if err := ca.web.JSON(ctx, product, web.Request{Method: http.MethodGet, Path: "/v1/ca"}, nil, &list, describe); err != nil {
		return nil, err
	}
	for _, c := range list.CAs {
		if c.Name != ca.o.CA {
			continue
		}
		a, err := ca.web.Do(ctx, web.Request{Method: http.MethodGet, Path: "/v1/ca/" + url.PathEscape(c.Subject) + "/certificate/download"})
		if err != nil {
			return nil, err
		}
		if !a.OK() {
			return nil, a.Fail(product, describe(a.Body))
		}
		return parseBundle(a.Body)
	}
	return nil, fmt.Errorf("EJBCA has no CA %q that the gateway's role may see", ca.o.CA)
}
