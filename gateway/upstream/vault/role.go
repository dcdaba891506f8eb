package vault

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// role is what is read of a role: what it puts into certificates.
type role struct {
	UseCSRCommonName bool `json:"use_csr_common_name"`
	UseCSRSANs       bool `json:"use_csr_sans"`
	NoStore          bool `json:"no_store"`
	GenerateLease    bool `json:"generate_lease"`

	Country            []string `json:"country"`
	Organization       []string `json:"organization"`
	OrganizationalUnit []string `json:"ou"`
	Locality           []string `json:"locality"`
	Province           []string `json:"province"`
	StreetAddress      []string `json:"street_address"`
	PostalCode         []string `json:"postal_code"`
	SerialSource       string   `json:"serial_number_source"`

	KeyUsage        []string `json:"key_usage"`
	Server          bool     `json:"server_flag"`
	Client          bool     `json:"client_flag"`
	CodeSigning     bool     `json:"code_signing_flag"`
	EmailProtection bool     `json:"email_protection_flag"`
	ExtKeyUsage     []string `json:"ext_key_usage"`
	ExtKeyUsageOIDs []string `json:"ext_key_usage_oids"`
	Policies        []string `json:"policy_identifiers"`
	NotAfter        string   `json:"not_after"`
	Issuer          string   `json:"issuer_ref"`
}

// roleAge is for how long a role is used without reading it again.
const roleAge = time.Minute

// readRole reads the role, and refuses to work with one that could make other certificates than those that are decided, or ones that
// cannot be found again.
func (ca *CA) readRole(ctx context.Context) (*role, error) {
	ca.mu.Lock()
	r, read := ca.role, ca.read
	ca.mu.Unlock()
	if r != nil && ca.o.Now().Sub(read) < roleAge {
		return r, nil
	}
	path := ca.o.Mount + "/roles/" + ca.o.Role
	r = &role{}
	err := ca.call(ctx, http.MethodGet, "/v1/"+path, nil, r)
	switch {
	case web.Status(err) == http.StatusNotFound:
		return nil, fmt.Errorf("there is no role %q in the mount %q, or no such mount", ca.o.Role, ca.o.Mount)
	case web.Status(err) == http.StatusForbidden:
		return nil, fmt.Errorf("read the role: %w; the policy of the token needs read on %s", err, path)
	case err != nil:
		return nil, fmt.Errorf("read the role: %w", err)
	case !ca.o.Verbatim && (r.UseCSRCommonName || r.UseCSRSANs):
		return nil, fmt.Errorf("the role %q takes names from requests, whatever was decided: set use_csr_common_name=false and use_csr_sans=false on it", ca.o.Role)
	case r.NoStore:
		return nil, fmt.Errorf("the role %q does not store what it signs, so that it could be neither found nor revoked: set no_store=false on it", ca.o.Role)
	case r.GenerateLease:
		return nil, fmt.Errorf("the role %q revokes certificates when the gateway's token ends: set generate_lease=false on it", ca.o.Role)
	}
	ca.mu.Lock()
	ca.role, ca.read = r, ca.o.Now()
	ca.mu.Unlock()
	return r, nil
}

// keyUsages are the names of RFC 5280 4.2.1.3 as Vault has them: those of crypto/x509.
var keyUsages = map[string]x509.KeyUsage{
	"digitalsignature": x509.KeyUsageDigitalSignature, "contentcommitment": x509.KeyUsageContentCommitment, "keyencipherment": x509.KeyUsageKeyEncipherment,
	"dataencipherment": x509.KeyUsageDataEncipherment, "keyagreement": x509.KeyUsageKeyAgreement, "certsign": x509.KeyUsageCertSign,
	"crlsign": x509.KeyUsageCRLSign, "encipheronly": x509.KeyUsageEncipherOnly, "decipheronly": x509.KeyUsageDecipherOnly,
}

var extKeyUsages = map[string]x509.ExtKeyUsage{
	"any": x509.ExtKeyUsageAny, "serverauth": x509.ExtKeyUsageServerAuth, "clientauth": x509.ExtKeyUsageClientAuth, "codesigning": x509.ExtKeyUsageCodeSigning,
	"emailprotection": x509.ExtKeyUsageEmailProtection, "ipsecendsystem": x509.ExtKeyUsageIPSECEndSystem, "ipsectunnel": x509.ExtKeyUsageIPSECTunnel,
	"ipsecuser": x509.ExtKeyUsageIPSECUser, "timestamping": x509.ExtKeyUsageTimeStamping, "ocspsigning": x509.ExtKeyUsageOCSPSigning,
	"microsoftservergatedcrypto": x509.ExtKeyUsageMicrosoftServerGatedCrypto, "netscapeservergatedcrypto": x509.ExtKeyUsageNetscapeServerGatedCrypto,
}

func (r *role) keyUsage() (out x509.KeyUsage) {
	for _, k := range r.KeyUsage {
		out |= keyUsages[strings.ToLower(strings.TrimSpace(k))]
	}
	return out
}

func (r *role) purposes() (out []x509.ExtKeyUsage, oids []asn1.ObjectIdentifier) {
	set := map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageServerAuth: r.Server, x509.ExtKeyUsageClientAuth: r.Client, x509.ExtKeyUsageCodeSigning: r.CodeSigning,
		x509.ExtKeyUsageEmailProtection: r.EmailProtection}
	for _, k := range r.ExtKeyUsage {
		if u, ok := extKeyUsages[strings.ToLower(strings.TrimSpace(k))]; ok {
			set[u] = true
		}
	}
	for u, on := range set {
		if on {
			out = append(out, u)
		}
	}
	for _, text := range r.ExtKeyUsageOIDs {
		if oid, ok := parseOID(text); ok {
			oids = append(oids, oid)
		}
	}
	return out, oids
}

func parseOID(text string) (asn1.ObjectIdentifier, bool) {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 {
			return nil, false
		}
		oid = append(oid, n)
	}
	return oid, len(oid) > 1
}
