// Package ejbcaserver is a server that was written from EJBCA's published REST description (OpenAPI of EJBCA 8, and the source
// of EJBCA Community for statuses and errors): no EJBCA runs where tests do. What EJBCA really makes of names, and which status it
// answers with in each case, is not proven by it.
package ejbcaserver

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/upstreams/authority"
)

// entity is an end entity.
type entity struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Subject  string `json:"subject_dn"`
	SAN      string `json:"subject_alt_name"`
	CA       string `json:"ca_name"`
	Profile  string `json:"certificate_profile_name"`
	EEP      string `json:"end_entity_profile_name"`
	Token    string `json:"token"`
	Data     []struct{ Name, Value string }
	csr      *x509.CertificateRequest
	status   string
	certs    []*x509.Certificate
}

// Server is an EJBCA with the CA Mail CA and the profiles Mail and Users.
type Server struct {
	KeyUsage x509.KeyUsage // of the certificate profile

	t         testing.TB
	Authority *authority.Authority

	Mu           sync.Mutex // guards what follows
	entities     map[string]*entity
	approvals    map[int]*entity // that wait
	rejected     map[int]bool
	Revoked      map[string]string   // reasons, by serial number
	Issued       []string            // serial numbers
	Certificates []*x509.Certificate // likewise
	Approve      bool                // registrations wait for an approval
	Forget       bool                // certificates are not stored
	Forbidden    bool                // the gateway has no role
}

// New makes a server that has issued nothing. Serve it with TLS that asks for a client certificate by Authority.
func New(t testing.TB) *Server {
	return &Server{t: t, KeyUsage: x509.KeyUsageKeyEncipherment, Authority: authority.New(t), entities: map[string]*entity{}, approvals: map[int]*entity{}, rejected: map[int]bool{}, Revoked: map[string]string{}}
}

// ServeHTTP answers one request at a time.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/ejbca/ejbca-rest-api/v1")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if s.Forbidden {
		fail(w, http.StatusForbidden, "not authorized")
		return
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	last := parts[len(parts)-1]
	switch {
	case r.Method == http.MethodPost && path == "/endentity":
		s.register(w, r)
	case r.Method == http.MethodPost && path == "/endentity/search":
		s.entitySearch(w, r)
	case r.Method == http.MethodPost && path == "/certificate/certificaterequest":
		s.request(w, r)
	case r.Method == http.MethodPost && path == "/certificate/pkcs10enroll":
		s.pkcs10(w, r)
	case r.Method == http.MethodPost && path == "/certificate/search":
		s.search(w, r)
	case r.Method == http.MethodPost && last == "finalize":
		s.finalize(w, parts[1])
	case r.Method == http.MethodPut && last == "revoke":
		s.revoke(w, r, parts)
	case r.Method == http.MethodGet && path == "/ca":
		send(w, http.StatusOK, map[string]any{"certificate_authorities": []any{map[string]any{"id": 1, "name": "Other", "subject_dn": "CN=Other"},
			map[string]any{"id": 2, "name": "Mail CA", "subject_dn": "CN=Test Issuing CA"}}})
	case r.Method == http.MethodGet && path == "/ca/CN=Test%20Issuing%20CA/certificate/download":
		for _, c := range []*x509.Certificate{s.Authority.Issuing, s.Authority.Root} {
			fmt.Fprintf(w, "Subject: %s\nIssuer: %s\n", c.Subject, c.Issuer)
			_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
	default:
		http.NotFound(w, r)
	}
}

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, message string) {
	send(w, status, map[string]any{"error_code": status, "error_message": message})
}

func (s *Server) waits(w http.ResponseWriter, e *entity) {
	id := 100 + len(s.approvals) + len(s.rejected)
	s.approvals[id] = e
	send(w, http.StatusAccepted, map[string]any{"status_code": 202, "info_message": "waiting for approval", "request_id": id, "link": "https://…/finalize"})
}

func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	e := &entity{status: "NEW"}
	if err := json.NewDecoder(r.Body).Decode(&struct {
		*entity
		Data *[]struct{ Name, Value string } `json:"extension_data"`
	}{e, &e.Data}); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	switch {
	case s.entities[e.Username] != nil:
		fail(w, http.StatusBadRequest, "User "+e.Username+" already exists.")
	case e.Profile != "Mail" || e.EEP != "Users" || e.CA != "Mail CA":
		fail(w, http.StatusNotFound, "no such profile or CA")
	case e.Token != "USERGENERATED" || len(e.Password) < 20:
		fail(w, http.StatusUnprocessableEntity, "token or password")
	case strings.Contains(e.Subject, "Mallory"):
		fail(w, http.StatusUnprocessableEntity, "Wrong syntax of DN field")
	case s.Approve:
		s.waits(w, e)
	default:
		s.entities[e.Username] = e
		w.WriteHeader(http.StatusOK)
	}
}

// criterion is the one name that is searched for.
func criterion(w http.ResponseWriter, r *http.Request) (string, bool) {
	var in struct {
		Max      int `json:"max_number_of_results"`
		Criteria []struct{ Property, Value, Operation string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Max < 1 || len(in.Criteria) != 1 || in.Criteria[0].Property != "QUERY" || in.Criteria[0].Operation != "EQUAL" {
		fail(w, http.StatusBadRequest, "Invalid search criteria")
		return "", false
	}
	return in.Criteria[0].Value, true
}

func (s *Server) entitySearch(w http.ResponseWriter, r *http.Request) {
	name, ok := criterion(w, r)
	if !ok {
		return
	}
	list := []any{}
	if e := s.entities[name]; e != nil {
		list = append(list, map[string]any{"username": e.Username, "dn": e.Subject, "status": e.status, "token": e.Token})
	}
	send(w, http.StatusOK, map[string]any{"end_entities": list, "more_results": false})
}

func (s *Server) search(w http.ResponseWriter, r *http.Request) {
	name, ok := criterion(w, r)
	if !ok {
		return
	}
	list := []any{}
	if e := s.entities[name]; e != nil && !s.Forget {
		for _, c := range e.certs {
			twice := base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(c.Raw)))
			list = append(list, map[string]any{"certificate": twice, "serial_number": c.SerialNumber.Text(16), "response_format": "DER"})
		}
	}
	send(w, http.StatusOK, map[string]any{"certificates": list, "more_results": false})
}

// enrollment is what both ways of enrolling have.
type enrollment struct {
	CSR      string `json:"certificate_request"`
	Username string `json:"username"`
	Password string `json:"password"`
	Chain    bool   `json:"include_chain"`
	CA       string `json:"certificate_authority_name"`
	Profile  string `json:"certificate_profile_name"`
	EEP      string `json:"end_entity_profile_name"`
}

func readEnrollment(w http.ResponseWriter, r *http.Request) (in enrollment, csr *x509.CertificateRequest, ok bool) {
	err := json.NewDecoder(r.Body).Decode(&in)
	if err == nil {
		block, _ := pem.Decode([]byte(in.CSR))
		if block == nil {
			block = &pem.Block{}
		}
		if csr, err = x509.ParseCertificateRequest(block.Bytes); err == nil {
			err = csr.CheckSignature()
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
	}
	return in, csr, err == nil
}

func (s *Server) request(w http.ResponseWriter, r *http.Request) {
	in, csr, ok := readEnrollment(w, r)
	if !ok {
		return
	}
	e := s.entities[in.Username]
	switch {
	case in.CA != "Mail CA":
		fail(w, http.StatusBadRequest, "CA with name "+in.CA+" doesn't exist.")
	case e == nil:
		fail(w, http.StatusNotFound, "User "+in.Username+" doesn't exist")
	case e.status != "NEW":
		fail(w, http.StatusBadRequest, "Got request with status "+e.status+", NEW, FAILED or INPROCESS required: "+in.Username)
	case e.Password != in.Password:
		fail(w, http.StatusForbidden, "wrong password")
	case tooSmall(csr):
		fail(w, http.StatusBadRequest, "Illegal key length 2048")
	default:
		s.sign(w, e, csr, entitySubject(s.t, e.Subject), entityExtensions(s.t, e))
	}
}

func tooSmall(csr *x509.CertificateRequest) bool {
	k, ok := csr.PublicKey.(*rsa.PublicKey)
	return ok && k.N.BitLen() < 2048
}

func (s *Server) pkcs10(w http.ResponseWriter, r *http.Request) {
	in, csr, ok := readEnrollment(w, r)
	if !ok {
		return
	}
	if in.Profile != "Mail" || in.EEP != "Users" || in.CA != "Mail CA" {
		fail(w, http.StatusBadRequest, "no such profile or CA")
		return
	}
	e := s.entities[in.Username]
	if e == nil {
		e = &entity{Username: in.Username, Password: in.Password, csr: csr, status: "NEW", Token: "USERGENERATED"}
	}
	switch {
	case strings.Contains(csr.Subject.CommonName, "Mallory"):
		fail(w, http.StatusBadRequest, "Wrong syntax of DN field")
	case s.Approve:
		s.waits(w, e)
	default:
		s.entities[e.Username] = e
		s.fromRequest(w, e, csr)
	}
}

func (s *Server) fromRequest(w http.ResponseWriter, e *entity, csr *x509.CertificateRequest) {
	var extensions []pkix.Extension
	for _, x := range csr.Extensions {
		if x.Id.String() == "2.5.29.17" {
			extensions = append(extensions, x)
		}
	}
	s.sign(w, e, csr, csr.RawSubject, extensions)
}

func (s *Server) finalize(w http.ResponseWriter, number string) {
	id, err := strconv.Atoi(number)
	e := s.approvals[id]
	switch {
	case err != nil || e == nil && !s.rejected[id]:
		fail(w, http.StatusBadRequest, "Could not find request with Id '"+number+"'")
	case s.rejected[id]:
		fail(w, http.StatusBadRequest, "Request with Id '"+number+"' has been rejected")
	case s.entities[e.Username] == nil:
		send(w, http.StatusAccepted, map[string]any{"status_code": 202, "info_message": "still waiting", "request_id": id})
	case e.status == "GENERATED":
		fail(w, http.StatusBadRequest, "Enrollment with Id '"+number+"' has already been finalized")
	case e.csr == nil:
		fail(w, http.StatusInternalServerError, "General failure.")
	default:
		s.fromRequest(w, e, e.csr)
	}
}

// decide approves or rejects all that waits.
func (s *Server) Decide(yes bool) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for id, e := range s.approvals {
		if yes {
			s.entities[e.Username] = e
		} else {
			s.rejected[id] = true
			delete(s.approvals, id)
		}
	}
}

func (s *Server) sign(w http.ResponseWriter, e *entity, csr *x509.CertificateRequest, subject []byte, extensions []pkix.Extension) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 150))
	if err != nil {
		s.t.Error(err)
	}
	template := &x509.Certificate{SerialNumber: serial, RawSubject: subject, NotBefore: time.Now().Add(-10 * time.Minute), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: s.KeyUsage, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, ExtraExtensions: extensions,
		BasicConstraintsValid: true, CRLDistributionPoints: []string{"http://ejbca.lab.test/crl"}}
	for _, d := range e.Data {
		if d.Name == "customdata_ENDTIME" {
			if template.NotAfter, err = time.Parse("2006-01-02 15:04:05-07:00", d.Value); err != nil {
				fail(w, http.StatusUnprocessableEntity, err.Error())
				return
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.Authority.Issuing, csr.PublicKey, s.Authority.IssuingKey)
	if err != nil {
		fail(w, http.StatusInternalServerError, "General failure.")
		return
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Error(err)
	}
	e.certs, e.status, e.Password = append(e.certs, cert), "GENERATED", ""
	s.Issued = append(s.Issued, serial.Text(16))
	s.Certificates = append(s.Certificates, cert)
	send(w, http.StatusCreated, map[string]any{"certificate": cert.Raw, "serial_number": strings.ToUpper(serial.Text(16)), "response_format": "DER",
		"certificate_chain": [][]byte{s.Authority.Issuing.Raw, s.Authority.Root.Raw}})
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request, parts []string) {
	issuer, err := url.PathUnescape(parts[1])
	serial, reason := strings.ToLower(parts[2]), r.URL.Query().Get("reason")
	switch {
	case err != nil || issuer != "CN=Test Issuing CA":
		fail(w, http.StatusNotFound, "CA '"+issuer+"' does not exist.")
	case !slices.Contains(s.Issued, serial):
		fail(w, http.StatusNotFound, "no such certificate")
	case s.Revoked[serial] != "":
		fail(w, http.StatusConflict, "already revoked")
	default:
		s.Revoked[serial] = reason
		send(w, http.StatusOK, map[string]any{"issuer_dn": issuer, "serial_number": serial, "revoked": true, "revocation_reason": reason})
	}
}

// words splits text at commas that are not escaped, and takes the escapes away.
func words(text string) (out [][2]string) {
	var parts []string
	current, escaped := "", false
	for _, c := range text {
		switch {
		case escaped:
			current, escaped = current+string(c), false
		case c == '\\':
			escaped = true
		case c == ',':
			parts, current = append(parts, current), ""
		default:
			current += string(c)
		}
	}
	for _, p := range append(parts, current) {
		name, value, _ := strings.Cut(p, "=")
		out = append(out, [2]string{name, value})
	}
	return out
}

// entitySubject is a subject in the order of X.500, as a profile with its LDAP order switched off makes it.
func entitySubject(t testing.TB, text string) []byte {
	t.Helper()
	oids := map[string]asn1.ObjectIdentifier{"CN": {2, 5, 4, 3}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "SN": {2, 5, 4, 5}, "C": {2, 5, 4, 6}, "DC": {0, 9, 2342, 19200300, 100, 1, 25},
		"E": {1, 2, 840, 113549, 1, 9, 1}}
	var name pkix.RDNSequence
	for _, w := range slices.Backward(words(text)) {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: oids[w[0]], Value: w[1]}})
	}
	der, err := asn1.Marshal(name)
	if err != nil {
		t.Error(err)
	}
	return der
}

func entityExtensions(t testing.TB, e *entity) (out []pkix.Extension) {
	t.Helper()
	var list []asn1.RawValue
	for _, w := range words(e.SAN) {
		raw := asn1.RawValue{Class: 2, Bytes: []byte(w[1])}
		switch w[0] {
		case "rfc822name":
			raw.Tag = 1
		case "dNSName":
			raw.Tag = 2
		case "uniformResourceIdentifier":
			raw.Tag = 6
		case "iPAddress":
			raw.Tag, raw.Bytes = 7, net.ParseIP(w[1])
			if v4 := net.ParseIP(w[1]).To4(); v4 != nil {
				raw.Bytes = v4
			}
		case "upn":
			text, err := asn1.MarshalWithParams(w[1], "utf8,explicit,tag:0")
			if err != nil {
				t.Error(err)
			}
			raw.IsCompound, raw.Bytes = true, append([]byte{0x06, 0x0a, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x14, 2, 3}, text...)
		case "guid":
			octets, _ := hex.DecodeString(w[1])
			raw.IsCompound, raw.Bytes = true, append([]byte{0x06, 0x09, 0x2b, 6, 1, 4, 1, 0x82, 0x37, 0x19, 1, 0xa0, byte(len(octets) + 2), 0x04, byte(len(octets))}, octets...)
		default:
			continue
		}
		list = append(list, raw)
	}
	if len(list) > 0 {
		value, err := asn1.Marshal(list)
		if err != nil {
			t.Error(err)
		}
		out = append(out, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value})
	}
	for _, d := range e.Data {
		if value, err := hex.DecodeString(d.Value); err == nil && strings.HasPrefix(d.Name, "1.") {
			var oid asn1.ObjectIdentifier
			for part := range strings.SplitSeq(d.Name, ".") {
				n, _ := strconv.Atoi(part)
				oid = append(oid, n)
			}
			out = append(out, pkix.Extension{Id: oid, Value: value})
		}
	}
	return out
}
