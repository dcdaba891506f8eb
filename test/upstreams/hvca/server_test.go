// Package hvca tests the driver on a server that was written from GlobalSign's published description of the Atlas Certificate Management
// API (version 2.10) and the JSON of their open client (github.com/globalsign/hvclient): there is no such service without an account. In
// which order Atlas puts a subject, how soon it lists what it has issued, and which status it answers with in each case, is not proven by
// these tests.
package hvca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/upstreams/authority"
)

const (
	apiKey    = "e510e289e6cd8947"
	apiSecret = "a477a8393d17a55ecb2ba6a61f58feb84770b621"
)

type server struct {
	t testing.TB
	a *authority.Authority

	mu      sync.Mutex
	tokens  map[string]bool
	logins  int
	certs   map[string]*x509.Certificate
	order   []string
	revoked map[string]string
	waits   map[string]int // how often a certificate is not there yet
	wait    int            // the same, for those that come
	hidden  bool           // what is issued is not listed
	format  string         // of public keys
	fetched int
}

type typed struct{ Type, Value string }

// request is what the description has of POST /certificates.
type request struct {
	Validity struct {
		From int64 `json:"not_before"`
		To   int64 `json:"not_after"`
	} `json:"validity"`
	Subject struct {
		Country      string   `json:"country"`
		State        string   `json:"state"`
		Locality     string   `json:"locality"`
		Street       string   `json:"street_address"`
		Organization string   `json:"organization"`
		Units        []string `json:"organizational_unit"`
		CommonName   string   `json:"common_name"`
		Serial       string   `json:"serial_number"`
		Extra        []typed  `json:"extra_attributes"`
	} `json:"subject_dn"`
	SAN struct {
		DNS    []string `json:"dns_names"`
		Emails []string `json:"emails"`
		IPs    []string `json:"ip_addresses"`
		URIs   []string `json:"uris"`
		Others []typed  `json:"other_names"`
	} `json:"san"`
	EKUs     []string `json:"extended_key_usages"`
	Template *struct {
		ID    string `json:"id"`
		Major int64  `json:"major_version"`
		Minor int64  `json:"minor_version"`
	} `json:"ms_extension_template"`
	Custom    map[string]string `json:"custom_extensions"`
	Key       string            `json:"public_key"`
	Signature string            `json:"public_key_signature"`
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/problem+json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"description": text, "errors": map[string]string{"field": "reason"}})
}

func send(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	if !ok || r.ContentLength > 0 && r.Header.Get("Content-Type") != "application/json;charset=utf-8" {
		fail(w, http.StatusNotFound, "no such thing")
		return
	}
	if path == "/login" {
		s.login(w, r)
		return
	}
	if !s.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] {
		fail(w, http.StatusUnauthorized, "token expired")
		return
	}
	serial, one := strings.CutPrefix(path, "/certificates/")
	switch {
	case path == "/validationpolicy":
		send(w, map[string]any{"validity": map[string]any{"secondsmin": 60, "secondsmax": 40000000, "not_before_negative_skew": 120, "not_before_positive_skew": 3600},
			"public_key": map[string]any{"key_type": "RSA", "allowed_lengths": []int{2048, 3072, 4096}, "key_format": s.format}, "public_key_signature": "FORBIDDEN"})
	case path == "/trustchain":
		var list []string
		for _, c := range []*x509.Certificate{s.a.Issuing, s.a.Root} {
			list = append(list, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
		}
		send(w, list)
	case path == "/stats/issued":
		s.list(w, r)
	case path == "/certificates" && r.Method == http.MethodPost:
		s.issue(w, r)
	case one && s.certs[serial] == nil:
		fail(w, http.StatusNotFound, "no such certificate")
	case one && r.Method == http.MethodPatch:
		s.revoke(w, r, serial)
	case one && s.waits[serial] > 0:
		s.waits[serial]--
		w.WriteHeader(http.StatusAccepted)
	case one:
		s.fetched++
		status := "ISSUED"
		if s.revoked[serial] != "" {
			status = "REVOKED"
		}
		send(w, map[string]any{"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certs[serial].Raw})), "status": status, "updated_at": time.Now().Unix()})
	default:
		fail(w, http.StatusNotFound, "no such thing")
	}
}

func (s *server) login(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Key    string `json:"api_key"`
		Secret string `json:"api_secret"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Key != apiKey || in.Secret != apiSecret {
		fail(w, http.StatusUnauthorized, "bad credentials")
		return
	}
	s.logins++
	token := fmt.Sprint("token", s.logins)
	s.tokens[token] = true
	send(w, map[string]string{"access_token": token})
}

func (s *server) list(w http.ResponseWriter, r *http.Request) {
	number := func(name string) int {
		n, err := strconv.Atoi(r.URL.Query().Get(name))
		if err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
		return n
	}
	var all []map[string]any
	for _, serial := range s.order {
		if c := s.certs[serial]; !s.hidden && c.NotBefore.Unix() >= int64(number("from")) && c.NotBefore.Unix() <= int64(number("to")) {
			all = append(all, map[string]any{"serial_number": serial, "not_before": c.NotBefore.Unix(), "not_after": c.NotAfter.Unix()})
		}
	}
	w.Header().Set("Total-Count", strconv.Itoa(len(all)))
	from := min((number("page")-1)*number("per_page"), len(all))
	send(w, append([]map[string]any{}, all[from:min(from+number("per_page"), len(all))]...))
}

func (s *server) revoke(w http.ResponseWriter, r *http.Request, serial string) {
	var in struct {
		Reason string `json:"revocation_reason"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Reason == "" || s.revoked[serial] != "" {
		fail(w, http.StatusUnprocessableEntity, "cannot be revoked")
		return
	}
	s.revoked[serial] = in.Reason
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) issue(w http.ResponseWriter, r *http.Request) {
	var in request
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	key, err := s.key(in)
	switch {
	case err != nil:
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	case in.Subject.CommonName == "Mallory":
		fail(w, http.StatusUnprocessableEntity, "common_name")
		return
	case in.Validity.From < time.Now().Unix()-125:
		fail(w, http.StatusUnprocessableEntity, "not_before")
		return
	}
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 96))
	if err != nil {
		s.t.Error(err)
	}
	template := &x509.Certificate{SerialNumber: n, NotBefore: time.Unix(in.Validity.From, 0), NotAfter: time.Unix(in.Validity.To, 0), KeyUsage: x509.KeyUsageKeyEncipherment,
		Subject: subject(in), ExtraExtensions: extensions(s.t, in), CRLDistributionPoints: []string{"http://crl.lab.test/"}}
	for _, text := range in.EKUs {
		template.UnknownExtKeyUsage = append(template.UnknownExtKeyUsage, oid(text))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.a.Issuing, key, s.a.IssuingKey)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Error(err)
	}
	serial := fmt.Sprintf("%X", n)
	s.certs[serial], s.waits[serial] = cert, s.wait
	s.order = append(s.order, serial)
	w.Header().Set("Location", "https://local/v2/certificates/"+serial)
	w.WriteHeader(http.StatusCreated)
}

func (s *server) key(in request) (any, error) {
	block, rest := pem.Decode([]byte(in.Key))
	if block == nil || len(rest) > 0 {
		return nil, fmt.Errorf("public_key is not PEM")
	}
	if s.format == "PKCS8" {
		return x509.ParsePKIXPublicKey(block.Bytes)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return csr.PublicKey, csr.CheckSignature()
}

func oid(text string) (out asn1.ObjectIdentifier) {
	for part := range strings.SplitSeq(text, ".") {
		n, _ := strconv.Atoi(part)
		out = append(out, n)
	}
	return out
}

// subject has the attributes in the order of crypto/x509.
func subject(in request) pkix.Name {
	one := func(s string) []string {
		if s == "" {
			return nil
		}
		return []string{s}
	}
	n := pkix.Name{Country: one(in.Subject.Country), Province: one(in.Subject.State), Locality: one(in.Subject.Locality), StreetAddress: one(in.Subject.Street),
		Organization: one(in.Subject.Organization), OrganizationalUnit: in.Subject.Units, CommonName: in.Subject.CommonName, SerialNumber: in.Subject.Serial}
	for _, e := range in.Subject.Extra {
		n.ExtraNames = append(n.ExtraNames, pkix.AttributeTypeAndValue{Type: oid(e.Type), Value: e.Value})
	}
	return n
}

func extensions(t testing.TB, in request) (out []pkix.Extension) {
	t.Helper()
	must := func(der []byte, err error) []byte {
		if err != nil {
			t.Error(err)
		}
		return der
	}
	var san []asn1.RawValue
	for tag, list := range map[int][]string{1: in.SAN.Emails, 2: in.SAN.DNS, 6: in.SAN.URIs} {
		for _, text := range list {
			san = append(san, asn1.RawValue{Class: 2, Tag: tag, Bytes: []byte(text)})
		}
	}
	for _, text := range in.SAN.IPs {
		ip := net.ParseIP(text)
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		san = append(san, asn1.RawValue{Class: 2, Tag: 7, Bytes: ip})
	}
	for _, o := range in.SAN.Others {
		san = append(san, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true,
			Bytes: slices.Concat(must(asn1.Marshal(oid(o.Type))), must(asn1.MarshalWithParams(o.Value, "utf8,explicit,tag:0")))})
	}
	if san != nil {
		out = append(out, pkix.Extension{Id: oid("2.5.29.17"), Value: must(asn1.Marshal(san))})
	}
	if x := in.Template; x != nil {
		out = append(out, pkix.Extension{Id: oid("1.3.6.1.4.1.311.21.7"), Value: must(asn1.Marshal(struct {
			ID           asn1.ObjectIdentifier
			Major, Minor int64
		}{oid(x.ID), x.Major, x.Minor}))})
	}
	for name, value := range in.Custom {
		out = append(out, pkix.Extension{Id: oid(name), Value: must(asn1.MarshalWithParams(value, "utf8"))})
	}
	return out
}
