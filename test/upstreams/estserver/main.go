// Command estserver is GlobalSign's EST server (github.com/globalsign/est) in front of a small CA, for tests. The CA signs the subject
// and the extensions of a request for 30 days. It refuses requests of Mallory, and lets those to the label slow pend: it signs them when
// they are sent for the third time, and forgets them then, so that a fourth time is a new request. It prints its address.
package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/globalsign/est"
)

type ca struct {
	chain []*x509.Certificate
	key   crypto.Signer

	mu     sync.Mutex
	issued []string
	asked  map[[32]byte]int
}

func main() {
	file := flag.String("ca", "", "PEM file: the CA's certificates, the issuing one first, and its key in PKCS#8")
	password := flag.String("password", "", "of the user gateway; empty: nobody is asked for one")
	flag.Parse()
	c := &ca{asked: map[[32]byte]int{}}
	if err := c.load(*file); err != nil {
		log.Fatal(err)
	}
	config := &est.ServerConfig{CA: c}
	if *password != "" {
		config.CheckBasicAuth = func(_ context.Context, _ *http.Request, _, user, given string) error {
			if user != "gateway" || given != *password {
				return errors.New("wrong")
			}
			return nil
		}
	}
	router, err := est.NewRouter(config)
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", router)
	mux.HandleFunc("/test/issued", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = json.NewEncoder(w).Encode(c.issued)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	log.Fatal((&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}).Serve(l))
}

func (c *ca) load(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return err
			}
			c.key = key.(crypto.Signer)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		c.chain = append(c.chain, cert)
	}
	return nil
}

// answer is an error with a status.
type answer struct {
	status, after int
	text          string
}

func (a answer) StatusCode() int { return a.status }
func (a answer) Error() string   { return a.text }
func (a answer) RetryAfter() int { return a.after }

// CACerts names them as a server may: the root first.
func (c *ca) CACerts(context.Context, string, *http.Request) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for i := range c.chain {
		out = append(out, c.chain[len(c.chain)-1-i])
	}
	return out, nil
}

func (c *ca) Enroll(_ context.Context, csr *x509.CertificateRequest, label string, _ *http.Request) (*x509.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if csr.Subject.CommonName == "Mallory" {
		return nil, answer{status: http.StatusBadRequest, text: "this name is not signed here"}
	}
	switch label {
	case "", "fast":
	case "slow":
		sum := sha256.Sum256(csr.Raw)
		if c.asked[sum]++; c.asked[sum] < 3 {
			return nil, answer{status: http.StatusAccepted, after: 1, text: "a person has to look at it"}
		}
		delete(c.asked, sum)
	default:
		return nil, answer{status: http.StatusNotFound, text: "no such label"}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: serial, RawSubject: csr.RawSubject, ExtraExtensions: csr.Extensions, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(30 * 24 * time.Hour), CRLDistributionPoints: []string{"http://est.lab.test/crl"}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.chain[0], csr.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	c.issued = append(c.issued, serial.Text(16))
	return x509.ParseCertificate(der)
}

var errNo = answer{status: http.StatusNotImplemented, text: "not here"}

func (c *ca) CSRAttrs(context.Context, string, *http.Request) (est.CSRAttrs, error) {
	return est.CSRAttrs{}, errNo
}

func (c *ca) Reenroll(context.Context, *x509.Certificate, *x509.CertificateRequest, string, *http.Request) (*x509.Certificate, error) {
	return nil, errNo
}

func (c *ca) ServerKeyGen(context.Context, *x509.CertificateRequest, string, *http.Request) (*x509.Certificate, []byte, error) {
	return nil, nil, errNo
}

func (c *ca) TPMEnroll(context.Context, *x509.CertificateRequest, []*x509.Certificate, []byte, []byte, string, *http.Request) ([]byte, []byte, []byte, error) {
	return nil, nil, nil, errNo
}
