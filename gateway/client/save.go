package client

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"
)

// Pending is a request that waits for a decision, with all that is needed to check the answer.
type Pending struct {
	EnrollURL    string
	RequestID    string
	Template     string
	Key          crypto.Signer
	ArchivedHash []byte            // of the archived key that was sent; nil where none was
	CA           *x509.Certificate // who must sign the answer; nil where the address was given by hand
}

// pendingFile is the text form of Pending.
type pendingFile struct {
	EnrollURL    string `json:"enroll_url"`
	RequestID    string `json:"request_id"`
	Template     string `json:"template"`
	ArchivedHash []byte `json:"archived_key_hash,omitempty"`
	CA           string `json:"ca,omitempty"`
	Key          string `json:"private_key"`
}

// MarshalPending returns the state of a pending request as JSON. It holds the private key in the clear: the file must be
// readable by its owner only.
func MarshalPending(r *Result) ([]byte, error) {
	if !r.Pending || r.pending == nil {
		return nil, errors.New("the request is not pending")
	}
	p := r.pending
	key, err := r.KeyPEM()
	if err != nil {
		return nil, err
	}
	f := pendingFile{EnrollURL: p.EnrollURL, RequestID: p.RequestID, Template: p.Template, ArchivedHash: p.ArchivedHash, Key: string(key)}
	if p.CA != nil {
		f.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.CA.Raw}))
	}
	return json.MarshalIndent(f, "", "  ")
}

// LoadPending reads what MarshalPending wrote.
func LoadPending(text []byte) (*Pending, error) {
	var f pendingFile
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("pending request: %w", err)
	}
	if f.EnrollURL == "" || f.RequestID == "" {
		return nil, errors.New("pending request: the address or the request's number is missing")
	}
	if err := checkURL(f.EnrollURL); err != nil {
		return nil, fmt.Errorf("pending request: %w", err)
	}
	p := &Pending{EnrollURL: f.EnrollURL, RequestID: f.RequestID, Template: f.Template, ArchivedHash: f.ArchivedHash}
	block, _ := pem.Decode([]byte(f.Key))
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("pending request: private_key holds no PKCS#8 key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("pending request: private_key: %w", err)
	}
	var ok bool
	if p.Key, ok = key.(crypto.Signer); !ok {
		return nil, fmt.Errorf("pending request: private_key of type %T cannot sign", key)
	}
	if f.CA == "" {
		return p, nil
	}
	if block, _ = pem.Decode([]byte(f.CA)); block == nil {
		return nil, errors.New("pending request: ca holds no PEM certificate")
	}
	if p.CA, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("pending request: ca: %w", err)
	}
	return p, nil
}

const keyBlock = "PRIVATE KEY"

// PEM returns the certificate and its chain.
func (r *Result) PEM() []byte {
	var out []byte
	if r.Certificate == nil {
		return nil
	}
	for _, c := range append([]*x509.Certificate{r.Certificate}, r.Chain...) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// KeyPEM returns the private key as unencrypted PKCS#8.
func (r *Result) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(r.Key)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// PKCS12 returns key, certificate and chain, encrypted with AES-256 under the password.
func (r *Result) PKCS12(password string) ([]byte, error) {
	if r.Certificate == nil {
		return nil, errors.New("PKCS#12: there is no certificate yet")
	}
	out, err := pkcs12.Modern.Encode(r.Key, r.Certificate, r.Chain, password)
	if err != nil {
		return nil, fmt.Errorf("PKCS#12: %w", err)
	}
	return out, nil
}
