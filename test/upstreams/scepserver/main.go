// Scepserver is micromdm's SCEP server for tests: its own service, depot and signer, with AES and SHA-256 for answers, where the stock
// program leaves the library's DES in place. Usage: scepserver DEPOT PORTFILE [pending|des]
//
// With pending a request is answered PENDING first, and the certificate is given to CertPoll, which micromdm does not know; that part is
// written from RFC 8894.
package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	kitlog "github.com/go-kit/kit/log"
	"github.com/micromdm/scep/v2/depot"
	"github.com/micromdm/scep/v2/depot/file"
	scepserver "github.com/micromdm/scep/v2/server"
	"github.com/smallstep/pkcs7"
	"github.com/smallstep/scep"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		log.Fatal(err)
	}
}

func run(dir, portFile string, mode []string) error {
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	if len(mode) > 0 && mode[0] == "des" {
		pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmDESCBC
	}
	if err := pkcs7.SetDefaultDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256); err != nil {
		return err
	}
	d, err := file.NewFileDepot(dir)
	if err != nil {
		return err
	}
	certs, key, err := d.CA(nil)
	if err != nil {
		return err
	}
	var signer scepserver.CSRSignerContext = scepserver.SignCSRAdapter(refuseMallory{depot.NewSigner(d, depot.WithValidityDays(60), depot.WithAllowRenewalDays(0))})
	svc, err := scepserver.NewService(certs[0], key, signer)
	if err != nil {
		return err
	}
	if len(mode) > 0 && mode[0] == "pending" {
		svc = &pending{Service: svc, ca: certs[0], key: key, signer: signer, waiting: map[string]*scep.PKIMessage{}}
	}
	e := scepserver.MakeServerEndpoints(svc)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(portFile+".new", []byte(l.Addr().String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(portFile+".new", portFile); err != nil {
		return err
	}
	return http.Serve(l, scepserver.MakeHTTPHandler(e, svc, kitlog.NewLogfmtLogger(os.Stderr))) //nolint:gosec // for tests
}

// refuseMallory is the CA's policy.
type refuseMallory struct{ next *depot.Signer }

func (r refuseMallory) SignCSR(m *scep.CSRReqMessage) (*x509.Certificate, error) {
	for _, address := range m.CSR.EmailAddresses {
		if address == "mallory@lab.test" {
			return nil, errors.New("mallory is not wanted")
		}
	}
	return r.next.SignCSR(m)
}

var (
	oidTransactionID  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	oidMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	oidPKIStatus      = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	oidFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	oidSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	oidRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
)

type pending struct {
	scepserver.Service
	ca     *x509.Certificate
	key    any
	signer scepserver.CSRSignerContext

	mu      sync.Mutex
	waiting map[string]*scep.PKIMessage // by transaction
}

// PKIOperation answers PKCSReq with PENDING and CertPoll with the certificate.
func (p *pending) PKIOperation(ctx context.Context, data []byte) ([]byte, error) {
	p7, err := pkcs7.Parse(data)
	if err != nil {
		return nil, err
	}
	if err := p7.Verify(); err != nil {
		return nil, err
	}
	var id, kind string
	var nonce []byte
	for oid, to := range map[*asn1.ObjectIdentifier]any{&oidTransactionID: &id, &oidMessageType: &kind, &oidSenderNonce: &nonce} {
		if err := p7.UnmarshalSignedAttribute(*oid, to); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if kind == "19" {
		msg, err := scep.ParsePKIMessage(data)
		if err != nil {
			return nil, err
		}
		if err := msg.DecryptPKIEnvelope(p.ca, p.key); err != nil {
			return nil, err
		}
		p.waiting[id] = msg
		return p.reply(id, nonce, "3", nil)
	}
	msg := p.waiting[id]
	inner, err := pkcs7.Parse(p7.Content)
	if err != nil {
		return nil, err
	}
	plain, err := inner.Decrypt(p.ca, p.key)
	if err != nil {
		return nil, err
	}
	var names struct{ Issuer, Subject asn1.RawValue }
	if rest, err := asn1.Unmarshal(plain, &names); err != nil || len(rest) > 0 {
		return nil, errors.New("not IssuerAndSubject")
	}
	if msg == nil || !bytes.Equal(names.Issuer.FullBytes, p.ca.RawSubject) || !bytes.Equal(names.Subject.FullBytes, msg.CSR.RawSubject) {
		return p.reply(id, nonce, "2", nil)
	}
	cert, err := p.signer.SignCSRContext(ctx, msg.CSRReqMessage)
	if err != nil {
		return p.reply(id, nonce, "2", nil)
	}
	delete(p.waiting, id)
	certs, err := pkcs7.DegenerateCertificate(cert.Raw)
	if err != nil {
		return nil, err
	}
	sealed, err := pkcs7.Encrypt(certs, p7.Certificates)
	if err != nil {
		return nil, err
	}
	return p.reply(id, nonce, "0", sealed)
}

func (p *pending) reply(id string, nonce []byte, status string, content []byte) ([]byte, error) {
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		return nil, err
	}
	attributes := []pkcs7.Attribute{{Type: oidTransactionID, Value: id}, {Type: oidPKIStatus, Value: status}, {Type: oidMessageType, Value: "3"},
		{Type: oidSenderNonce, Value: nonce}, {Type: oidRecipientNonce, Value: nonce}}
	if status == "2" {
		attributes = append(attributes, pkcs7.Attribute{Type: oidFailInfo, Value: "4"})
	}
	if err := sd.AddSigner(p.ca, p.key, pkcs7.SignerInfoConfig{ExtraSignedAttributes: attributes}); err != nil {
		return nil, err
	}
	return sd.Finish()
}
