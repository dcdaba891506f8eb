package ldapsync

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	simple := Auth{Method: Simple, User: "svc", Password: "secret"}
	kerberos := Auth{Method: GSSAPI, Principal: "svc", Keytab: "svc.keytab"}
	for name, tt := range map[string]struct {
		config Config
		want   string // "" for a configuration that is fine
	}{
		"ldaps with a password":            {Config{Servers: []string{"ldaps://dc1.corp.example"}, Auth: simple}, ""},
		"starttls with a password":         {Config{Servers: []string{"ldap://dc1.corp.example"}, StartTLS: true, Auth: simple}, ""},
		"kerberos":                         {Config{Servers: []string{"ldap://dc1.corp.example:389/"}, Auth: kerberos}, ""},
		"a domain in place of servers":     {Config{Domain: "corp.example", Auth: kerberos}, ""},
		"a password in the clear":          {Config{Servers: []string{"ldap://dc1.corp.example"}, Auth: simple}, "in the clear"},
		"no server":                        {Config{Auth: simple}, "no server"},
		"a server without a scheme":        {Config{Servers: []string{"dc1.corp.example"}, Auth: simple}, "want ldaps://host"},
		"a server with another scheme":     {Config{Servers: []string{"https://dc1.corp.example"}, Auth: simple}, "unknown scheme"},
		"a server with a base DN":          {Config{Servers: []string{"ldaps://dc1/dc=corp"}, Auth: simple}, "want ldaps://host"},
		"kerberos with an address":         {Config{Servers: []string{"ldap://192.0.2.1"}, Auth: kerberos}, "host name, not its address"},
		"a user without a password":        {Config{Servers: []string{"ldaps://dc1"}, Auth: Auth{Method: Simple, User: "svc"}}, "needs a user and a password"},
		"kerberos without a key":           {Config{Servers: []string{"ldap://dc1"}, Auth: Auth{Method: GSSAPI, Principal: "svc"}}, "needs a principal with a keytab"},
		"no authentication":                {Config{Servers: []string{"ldaps://dc1"}}, "unknown authentication method"},
		"a CA file that does not exist":    {Config{Servers: []string{"ldaps://dc1"}, Auth: simple, CAFile: "/does/not/exist"}, "no such file"},
		"a CA file without a certificate":  {Config{Servers: []string{"ldaps://dc1"}, Auth: simple, CAFile: notPEM}, "no certificate in PEM form"},
		"a negative time between requests": {Config{Servers: []string{"ldaps://dc1"}, Auth: simple, Poll: -1}, "negative"},
	} {
		_, err := New(tt.config, quiet())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

func TestAPrintedConfigurationHidesThePassword(t *testing.T) {
	c := Config{Servers: []string{"ldaps://dc1"}, Auth: Auth{Method: Simple, User: "svc", Password: "hunter2"}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, c); strings.Contains(text, "hunter2") || !strings.Contains(text, "svc") {
			t.Errorf("%s: %s", format, text)
		}
	}
}

func TestRefusedBindsAreExplained(t *testing.T) {
	bad := func(text string) error {
		return ldap.NewError(ldap.LDAPResultInvalidCredentials, errors.New(text))
	}
	c := Config{Auth: Auth{Method: Simple, User: "svc"}}
	for _, tt := range []struct {
		err         error
		reason, fix string
	}{ // texts as domain controllers send them
		{bad("80090308: LdapErr: DSID-0C090447, comment: AcceptSecurityContext error, data 52e, v3839"), `does not accept the name "svc"`, "check both"},
		{bad("80090308: LdapErr: DSID-0C090447, comment: AcceptSecurityContext error, data 533, v3839"), `the account "svc" is disabled`, "enable it"},
		{bad("80090308: LdapErr: DSID-0C090447, comment: AcceptSecurityContext error, data 775, v3839"), `the account "svc" is locked`, "unlock it"},
		{bad("80090346: LdapErr: DSID-0C090597, comment: AcceptSecurityContext error, data 80090346, v4563"), "channel binding", "connect directly"},
		{ldap.NewError(ldap.LDAPResultStrongAuthRequired, errors.New("00002028: LdapErr: DSID-0C090257")), "not signed or encrypted", "ldaps://"},
		{errors.New("kerberos: logging on: [Root cause: KDC_Error] KRB_AP_ERR_SKEW Clock skew too great"), "Kerberos", "synchronize"},
	} {
		e := c.connectError(target{url: "ldaps://dc1", host: "dc1"}, tt.err)
		if !strings.Contains(e.Reason, tt.reason) || !strings.Contains(e.Fix, tt.fix) || !errors.Is(e, tt.err) || !strings.Contains(e.Error(), "ldaps://dc1") {
			t.Errorf("%v:\n%v", tt.err, e)
		}
	}
}

func TestDistinguishedNamesAreSplit(t *testing.T) {
	r := func(kv ...string) (out []templates.RDN) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, templates.RDN{Type: kv[i], Value: kv[i+1]})
		}
		return out
	}
	for dn, want := range map[string][][]templates.RDN{ // RFC 4514 4 has most of these
		`CN=Steve Kille,O=Isode Limited,C=GB`:                {r("CN", "Steve Kille"), r("O", "Isode Limited"), r("C", "GB")},
		`OU=Sales+CN=J.  Smith,DC=example,DC=net`:            {r("OU", "Sales", "CN", "J.  Smith"), r("DC", "example"), r("DC", "net")},
		`CN=James \"Jim\" Smith\, III,DC=example`:            {r("CN", `James "Jim" Smith, III`), r("DC", "example")},
		`CN=Before\0dAfter,DC=example`:                       {r("CN", "Before\rAfter"), r("DC", "example")},
		`CN=Lu\C4\8Di\C4\87`:                                 {r("CN", "Lučić")},
		`CN=Jürgen Müller,OU=Büro \+ Lager,DC=corp`:          {r("CN", "Jürgen Müller"), r("OU", "Büro + Lager"), r("DC", "corp")},
		`CN=\#1 \ ,OU=a\=b\\c`:                               {r("CN", "#1  "), r("OU", `a=b\c`)},
		`CN=Meier\0ACNF:4a6f2c1e-0000-0000-0000-000000,DC=x`: {r("CN", "Meier\nCNF:4a6f2c1e-0000-0000-0000-000000"), r("DC", "x")},
	} {
		got, err := parseDN(dn)
		if err != nil || !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s: %q, %v", dn, got, err)
		}
	}
	if _, err := parseDN("CN=a,b"); err == nil {
		t.Error("a value without a type is accepted")
	}
}

func TestTheSubjectCacheForgets(t *testing.T) {
	now := time.Now()
	c := newSubjectCache(time.Second, 3)
	sid := func(i int) security.SID { return security.SID(fmt.Sprintf("S-1-5-21-%d", i)) }
	for i := range 5 {
		c.put(sid(i), templates.Subject{CN: fmt.Sprint(i)}, now)
	}
	for i := range 5 {
		if s, ok := c.get(sid(i), now); ok != (i >= 2) || ok && s.CN != fmt.Sprint(i) {
			t.Errorf("account %d: %v, %v; only the newest three should be there", i, s.CN, ok)
		}
	}
	c.put(sid(4), templates.Subject{CN: "new"}, now.Add(500*time.Millisecond))
	if _, ok := c.get(sid(3), now.Add(time.Second)); ok {
		t.Error("an account is remembered for too long")
	}
	if s, ok := c.get(sid(4), now.Add(1400*time.Millisecond)); !ok || s.CN != "new" {
		t.Errorf("renewed account: %v, %v", s.CN, ok)
	}
	c.put(sid(9), templates.Subject{}, now.Add(time.Hour))
	if len(c.entries) != 1 || len(c.order) != 1 {
		t.Errorf("%d entries and %d keys after all but one expired", len(c.entries), len(c.order))
	}
	off := newSubjectCache(-1, 3)
	off.put(sid(1), templates.Subject{}, now)
	if _, ok := off.get(sid(1), now); ok {
		t.Error("a cache that is turned off remembers")
	}
}

func TestObjectsThatCannotBeUnderstoodAreListedAndLeftOut(t *testing.T) {
	build := func(dn string, a templates.Attributes) *templates.Snapshot {
		b := &builder{snapshot: &templates.Snapshot{OIDs: map[string]templates.OIDObject{}, Unusable: map[string]string{}}}
		b.add(dn, a)
		b.finish()
		return b.snapshot
	}
	class := func(name string) [][]byte { return [][]byte{[]byte("top"), []byte(name)} }
	for want, a := range map[string]templates.Attributes{
		"nTSecurityDescriptor":    {"objectclass": class("pKICertificateTemplate"), "cn": {[]byte("T")}},
		"nTSecurityDescriptor: m": {"objectclass": class("pKIEnrollmentService"), "cn": {[]byte("CA")}},
		"cACertificate, value 1":  {"objectclass": class("pKIEnrollmentService"), "cacertificate": {[]byte("rubbish")}},
		"value 2":                 {"objectclass": class("certificationAuthority"), "cn": {[]byte("NTAuthCertificates")}, "cacertificate": {{0}, []byte("rubbish")}},
		"msPKI-Cert-Template-OID": {"objectclass": class("msPKI-Enterprise-Oid"), "cn": {[]byte("1.2")}},
		"flags":                   {"objectclass": class("msPKI-Enterprise-Oid"), "mspki-cert-template-oid": {[]byte("1.2.3")}, "flags": {[]byte("x")}},
		"only a part of":          {"objectclass": class("pKIEnrollmentService"), "certificatetemplates;range=0-1499": {[]byte("T")}},
	} {
		s := build("CN=x", a)
		if !strings.Contains(s.Unusable["CN=x"], want) || len(s.Templates)+len(s.Services)+len(s.OIDs) > 0 {
			t.Errorf("want %q, got %q", want, s.Unusable)
		}
	}
}
