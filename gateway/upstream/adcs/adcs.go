// Package adcs issues through Microsoft's Active Directory Certificate Services, over the ICertPassage remote protocol ([MS-ICPR]) with
// packet privacy and Kerberos.
//
// AD CS builds a certificate from one of its own templates and the names of who asks, which is the gateway. The gateway's account needs
// the right to enroll for a template there that lets the enrollee supply the subject (msPKI-Certificate-Name-Flag 1), and nothing more.
// Such a template takes subject and alternative names from the PKCS#10 request, so that an order can be carried only if the client's
// request says them; Check refuses any other. What would let a requester name others without it is not used: no request attribute with
// alternative names (EDITF_ATTRIBUTESUBJECTALTNAME2, which must be off), no enrollment agent's signature.
//
// The AD CS template says key usage, extended key usage, policies and validity; the gateway compares what comes back.
//
// An order that waits for a certificate manager is found by its request ID. Where the answer is lost the ID is too, and ICertPassage
// cannot list requests. It cannot revoke either.
package adcs

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/keytab"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
)

// Options configure the driver.
type Options struct {
	Name      string              // of the CA, for messages
	Server    string              // the fully qualified name of the CA's machine
	Port      int                 // of ICertPassage; 0: its endpoint mapper says
	Authority string              // common name of the CA
	Roots     []*x509.Certificate // all that the CA issues must chain to one of them
	Issuing   []*x509.Certificate // the CA's certificate and those up to the root; empty: as its answers say
	Template  string              // common name of the AD CS template; "": that of the order's
	Ignore    []string            // further extensions that the client's request need not say, by OID

	Principal        string // of the gateway's account: name@REALM
	Keytab           string // file with its keys; read anew for each call
	Krb5Conf         string
	ServicePrincipal string // default host/Server

	ChainFile string        // keeps the CA's chain for the next start; "" keeps it in memory only
	Timeout   time.Duration // of one call with its logon; default 30 s
	Now       func() time.Time
}

// CA is an AD CS certification authority. It implements upstream.Issuer, upstream.Checker and upstream.Described.
type CA struct {
	o      Options
	krb5   *config.Config
	keytab *keytab.Keytab // as at the start
	chain  *chain.Keeper
}

// fromTemplate are extensions that AD CS makes from its own template, whatever a request says ([MS-WCCE] 3.2.2.6.2.1.4.5).
var fromTemplate = []string{wcce.OIDEKU, wcce.OIDKeyUsage, wcce.OIDAppPolicies, wcce.OIDTemplateName, wcce.OIDTemplateInfo, "2.5.29.32"}

// New reads the keytab. It does not connect.
func New(o Options) (*CA, error) {
	fail := func(err error) (*CA, error) { return nil, fmt.Errorf("CA %q: %w", o.Name, err) }
	if !strings.Contains(o.Server, ".") || strings.ContainsAny(o.Server, ":/[]") {
		return fail(fmt.Errorf("the server %q is not a fully qualified name, which Kerberos needs", o.Server))
	}
	if o.Authority == "" {
		return fail(errors.New("the common name of the CA is missing"))
	}
	if !strings.Contains(o.Principal, "@") {
		return fail(fmt.Errorf("the principal %q is not NAME@REALM", o.Principal))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.ServicePrincipal = cmp.Or(o.ServicePrincipal, "host/"+o.Server)
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	ca := &CA{o: o}
	var err error
	if ca.krb5, err = config.Load(o.Krb5Conf); err != nil {
		return fail(fmt.Errorf("%s: %w", o.Krb5Conf, err))
	}
	if ca.keytab, err = keytab.Load(o.Keytab); err != nil {
		return fail(fmt.Errorf("keytab %s: %w", o.Keytab, err))
	}
	ca.chain, err = chain.New(chain.Options{CA: o.Name, Roots: o.Roots, Known: o.Issuing, File: o.ChainFile, Now: o.Now})
	return ca, err
}

// Traits tell that AD CS takes names from the request and cannot be asked about lost answers.
func (ca *CA) Traits() upstream.Traits {
	return upstream.Traits{Product: "AD CS", Names: upstream.NamesInCSR, Repetition: upstream.RepeatBlind, NoRevocation: true}
}

// Check refuses a request that does not say the decided names, or that its key has not signed.
func (ca *CA) Check(order upstream.Order) error {
	fail := func(err error) error { return fmt.Errorf("CA %q: %w", ca.o.Name, err) }
	if _, err := upstream.SignedCSR(order, "an AD CS"); err != nil {
		return fail(err)
	}
	if err := upstream.CarriedByCSR(order, append(fromTemplate, ca.o.Ignore...)); err != nil {
		return fail(err)
	}
	if _, err := ca.attributes(order); err != nil {
		return fail(err)
	}
	return nil
}

// attributes names the template ([MS-WCCE] 2.2.2.7.10), in UTF-16 with a final zero as ICertPassage wants it.
func (ca *CA) attributes(order upstream.Order) ([]byte, error) {
	template := cmp.Or(ca.o.Template, order.Profile.Template)
	if template == "" || strings.ContainsAny(template, "\r\n\x00") {
		return nil, fmt.Errorf("%q is no name of a template", template)
	}
	var out []byte
	for _, u := range utf16.Encode([]rune("CertificateTemplate:" + template + "\x00")) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out, nil
}

const flagPKCS10 = 0x100 // [MS-WCCE] 3.2.1.4.2.1.1

// Submit asks for the certificate.
func (ca *CA) Submit(ctx context.Context, order upstream.Order) (upstream.Result, error) {
	if err := ca.Check(order); err != nil {
		return upstream.Result{State: upstream.Refused, Reason: err.Error()}, nil
	}
	attributes, err := ca.attributes(order)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, upstream.NotIssued(err))
	}
	return ca.ask(ctx, order, &icertpassage.CertServerRequestRequest{Flags: flagPKCS10, Authority: ca.o.Authority, Attributes: blob(attributes), Request: blob(order.CSR)})
}

// Find asks for the status of a request ID, which is an empty request with that ID ([MS-WCCE] 3.2.1.4.2.1.5).
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	if token == "" {
		return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and with it the number of the request. Look in its lists of issued certificates and "+
			"pending requests for one of %s with this public key at that time: revoke or deny it there, then let the client ask again", ca.o.Name, ca.o.Principal)}, nil
	}
	id, err := strconv.ParseUint(token, 10, 32)
	if err != nil || id == 0 {
		return upstream.Result{}, fmt.Errorf("CA %q: the token %q is no request ID", ca.o.Name, token)
	}
	return ca.ask(ctx, order, &icertpassage.CertServerRequestRequest{Authority: ca.o.Authority, RequestID: uint32(id), Attributes: blob(nil), Request: blob(nil)})
}

func (ca *CA) ask(ctx context.Context, order upstream.Order, in *icertpassage.CertServerRequestRequest) (upstream.Result, error) {
	out, err := ca.call(ctx, in)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	r, err := ca.result(order, in.RequestID, out)
	if err != nil {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	return r, nil
}

// Dispositions ([MS-WCCE] 3.2.1.4.2.1.3) and the HRESULTs that say that nothing was done at all.
const (
	denied          = 2
	issued          = 3
	underSubmission = 5
	revoked         = 6

	accessDenied   = 0x80070005
	serverDown     = 0x800706ba
	invalidArg     = 0x80070057
	failure        = 1 << 31
	facilityMask   = 0x1fff0000
	facilityCerts  = 0x00090000 // CERTSRV_E, CRYPT_E, TRUST_E and the like
	maxMessageText = 300
)

// result reads the answer of ICertPassage.
func (ca *CA) result(order upstream.Order, asked uint32, out *icertpassage.CertServerRequestResponse) (upstream.Result, error) {
	text := message(octets(out.DispositionMessage))
	code := out.Return
	if code == 0 && out.Disposition&failure != 0 {
		code = out.Disposition // AD CS says so why it has denied a request
	}
	switch {
	case code == accessDenied, code == serverDown, code == invalidArg:
		return upstream.Result{}, upstream.NotIssued(fmt.Errorf("AD CS answered 0x%08x: %s; is %q the CA's name, does its service run, and may %s request certificates there?",
			code, text, ca.o.Authority, ca.o.Principal))
	case code&failure != 0 && code&facilityMask == facilityCerts:
		return upstream.Result{State: upstream.Refused, Reason: fmt.Sprintf("AD CS answered 0x%08x: %s", code, text)}, nil
	case code != 0:
		return upstream.Result{}, fmt.Errorf("AD CS answered 0x%08x: %s", code, text)
	}
	switch out.Disposition {
	case issued:
		return ca.issued(order, out)
	case underSubmission:
		if out.RequestID == 0 || asked != 0 && asked != out.RequestID {
			return upstream.Result{}, fmt.Errorf("AD CS answered about request %d, asked was %d", out.RequestID, asked)
		}
		return upstream.Result{State: upstream.Pending, Token: strconv.FormatUint(uint64(out.RequestID), 10)}, nil
	case denied, revoked:
		return upstream.Result{State: upstream.Refused, Reason: fmt.Sprintf("AD CS request %d: disposition %d: %s", out.RequestID, out.Disposition, text)}, nil
	}
	return upstream.Result{}, fmt.Errorf("AD CS answered with disposition %d: %s", out.Disposition, text)
}

// issued checks the key and who has signed. Names and extensions the gateway compares.
func (ca *CA) issued(order upstream.Order, out *icertpassage.CertServerRequestResponse) (upstream.Result, error) {
	cert, err := x509.ParseCertificate(octets(out.EncodedCert))
	if err != nil {
		return upstream.Result{}, fmt.Errorf("the certificate of request %d: %w", out.RequestID, err)
	}
	key, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(order.PublicKey) {
		return upstream.Result{}, fmt.Errorf("the certificate %s is for another public key", cert.SerialNumber.Text(16))
	}
	var others []*x509.Certificate
	if signed, err := wcce.ParseSignedData(octets(out.Cert)); err == nil {
		others = signed.Certificates
	}
	if err := ca.chain.Verify(cert, others); err != nil {
		return upstream.Result{}, fmt.Errorf("the certificate %s: %w", cert.SerialNumber.Text(16), err)
	}
	return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
}

// message is AD CS's text, which is UTF-16, as one line.
func message(octets []byte) string {
	units := make([]uint16, 0, maxMessageText)
	for i := 0; i+1 < len(octets) && len(units) < maxMessageText; i += 2 {
		units = append(units, binary.LittleEndian.Uint16(octets[i:]))
	}
	text := strings.TrimRight(string(utf16.Decode(units)), "\x00\r\n ")
	return dn.Clean(strings.NewReplacer("\r\n", " ", "\n", " ").Replace(text))
}

// Revoke cannot be done over ICertPassage.
func (ca *CA) Revoke(_ context.Context, serial *big.Int, _ int) error {
	return fmt.Errorf("CA %q is AD CS, which revokes in its own console or by certutil -revoke %s", ca.o.Name, serial.Text(16))
}

// Chain returns the CA's certificate and those above it, as configured or as seen with the last certificate.
func (ca *CA) Chain(ctx context.Context) ([]*x509.Certificate, error) { return ca.chain.Get(ctx) }
