package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// partnered is a gateway that also reads the accounts of the second forest, as an account of that forest.
func partnered(t testing.TB) *world.World {
	t.Helper()
	inlab.NeedForeign(t)
	return world.StartChanged(t, "", func(c *config.Config) {
		c.Directory.Domains = []config.Domain{{Domain: "part.test", Servers: []string{"ldaps://dc2.part.test"}, CAFile: world.Env("LAB_CA_PEM"),
			Bind: config.Bind{Method: "simple", User: "svc-read@part.test", Password: config.Secret{Env: "LAB_PASSWORD"}}}}
	})
}

// grantEnroll lets one account or group of the lab enroll for the copy of a template.
func grantEnroll(t testing.TB, w *world.World, template string, sid security.SID) {
	t.Helper()
	tmpl := w.Directory.Snapshot().TemplateByName(template)
	sd := *tmpl.Security
	sd.DACL = append(slices.Clone(sd.DACL), security.ACE{Type: security.ACEAllowObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: sid})
	m := ldap.NewModifyRequest(tmpl.DN, []ldap.Control{&ldap.ControlMicrosoftSDFlags{ControlValue: 4}})
	m.Replace("nTSecurityDescriptor", []string{string(sd.Bytes())})
	if err := world.Admin(t).Modify(m); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the right in force", func() bool {
		now := w.Directory.Snapshot().TemplateByName(template)
		return now != nil && now.Security.ControlAccess(security.NewToken(sid), security.RightEnroll).Granted
	})
}

// part logs an account of the second forest on.
func part(t testing.TB, w *world.World, account string) *world.Client {
	t.Helper()
	c := w.Client(t, "alice")
	krb, err := kerberos.NewClient(kerberos.ClientOptions{Principal: account + "@" + world.Env("LAB_PART_REALM"), Password: world.Env("LAB_PASSWORD"), ConfigFile: world.Env("KRB5_CONFIG")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(krb.Close)
	c.HTTP.Transport = krb.Transport(w.HTTP().Transport)
	return c
}

// An account of a trusted forest enrolls: by the trust's tickets, by membership of its group in a domain local group here
// (through a foreign security principal), and with names from its own domain.
func TestAnAccountOfATrustedForestEnrolls(t *testing.T) {
	w := partnered(t)
	copyTemplate(t, w, "LabUserAuth", "Partner", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.99999.78.1",
		"mspki-certificate-name-flag": "-2046820352"}) // directory path, UPN and mail
	partners, err := w.Forest.SIDOf(t.Context(), `LAB\Partners`)
	if err != nil {
		t.Fatal(err)
	}
	grantEnroll(t, w, "Partner", partners)

	e, err := w.Explain(t.Context(), `PART\paula`, "Partner", "")
	if err != nil {
		t.Fatal(err)
	}
	if e.Outcome != templates.Allow || !strings.Contains(e.DN, "DC=part") {
		t.Errorf("explained: %s for %s: %+v", e.Outcome, e.DN, e.Checks)
	}
	paula := part(t, w, "paula")
	der, _ := world.Request(t, "Partner", nil)
	reply, err := paula.Submit(t, der)
	if err != nil {
		t.Fatal(err)
	}
	cert := testpki.Cert(t, reply.Certificate)
	subject, err := w.Forest.SubjectByName(t.Context(), "paula@part.test")
	if err != nil {
		t.Fatal(err)
	}
	text := dn.Show(cert.RawSubject)
	if !strings.Contains(text, "Paula Parker") || !strings.Contains(text, "DC=part") || !slices.Contains(cert.EmailAddresses, "paula@part.test") {
		t.Errorf("the certificate is for %s, %v", text, cert.EmailAddresses)
	}
	row, err := w.Ledger.BySerial(t.Context(), world.CAName, cert.SerialNumber.Text(16))
	if err != nil || row.CallerSID != subject.SID || row.Caller != "paula@PART.TEST" {
		t.Errorf("the ledger has %+v, %v", row, err)
	}

	for account, want := range map[string]hresult.Code{"peter": hresult.TemplateDenied, "pablo": hresult.SubjectEmailRequired} {
		der, _ := world.Request(t, "Partner", nil)
		_, err := part(t, w, account).Submit(t, der)
		wantFault(t, err, want)
		e, explainErr := w.Explain(t.Context(), account+"@part.test", "Partner", "")
		if explainErr != nil || e.Outcome != templates.Deny || hresult.From(e.Err()).Code != want {
			t.Errorf("%s explained: %+v, %v", account, e, explainErr)
		}
	}
	p, err := paula.GetPolicies(t.Context(), paula.CEP, soap.GetPoliciesRequest{})
	if err != nil || !slices.ContainsFunc(p.Policies, func(p soap.Policy) bool { return p.CommonName == "Partner" }) {
		t.Errorf("the template is not among paula's policies: %v", err)
	}
}

// A machine of the other forest, which the template's permissions name itself.
func TestAMachineOfATrustedForestEnrolls(t *testing.T) {
	w := partnered(t)
	copyTemplate(t, w, "LabMachine", "PartnerMachine", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.99999.78.2"})
	ws9, err := w.Forest.SIDOf(t.Context(), `PART\WS9$`)
	if err != nil {
		t.Fatal(err)
	}
	grantEnroll(t, w, "PartnerMachine", ws9)
	der, _ := world.Request(t, "PartnerMachine", nil)
	reply, err := part(t, w, "WS9$").Submit(t, der)
	if err != nil {
		t.Fatal(err)
	}
	if cert := testpki.Cert(t, reply.Certificate); cert.Subject.CommonName != "ws9.part.test" || !slices.Equal(cert.DNSNames, []string{"ws9.part.test"}) {
		t.Errorf("the certificate is for %s, %v", cert.Subject, cert.DNSNames)
	}
	e, err := w.Explain(t.Context(), `PART\WS9$`, "PartnerMachine", "")
	if err != nil || e.Outcome != templates.Allow {
		t.Errorf("explained: %+v, %v", e, err)
	}
}

// What explain says of the groups of a foreign account is what the ticket brings.
func TestGroupsOfAForeignAccountAreThoseOfItsTicket(t *testing.T) {
	w := partnered(t)
	subject, err := w.Forest.SubjectByName(t.Context(), `PART\paula`)
	if err != nil {
		t.Fatal(err)
	}
	names := w.Forest.NamesOf(t.Context(), subject.Groups)
	var got []string
	for _, name := range names {
		got = append(got, name)
	}
	for _, want := range []string{`PART\Domain Users`, `PART\Mailers`, `PART\All Mailers`, `LAB\Partners`} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if slices.Contains(got, `PART\Local Mailers`) {
		t.Errorf("a domain local group of the other forest counts here: %v", got)
	}
}

func TestAForestThatNobodyConfiguredIsNamedInTheRefusal(t *testing.T) {
	inlab.NeedForeign(t)
	w := world.Start(t)
	der, _ := world.Request(t, "LabUserAuth", nil)
	_, err := part(t, w, "paula").Submit(t, der)
	wantFault(t, err, hresult.NoSuchUser, "of a domain that this gateway does not read")
	if _, err := w.Explain(t.Context(), `PART\paula`, "LabUserAuth", ""); err == nil {
		t.Error("an account of a domain that is not configured was explained")
	}
	if _, err := w.Explain(t.Context(), `LAB\alice`, "LabUserAuth", ""); err != nil {
		t.Error(err)
	}
}

// Certificates of another CA, on an account of the second forest and on one of the own: coverage finds both, under their realms.
func TestCertificatesOfEveryDomainsAccountsAreCovered(t *testing.T) {
	w := partnered(t)
	ofAnotherCA(t, userDN(t, "Bob Baker"))
	admin := world.AdminOf(t, "ldaps://dc2.part.test", "dc2.part.test", "Administrator@part.test")
	found, err := admin.Search(ldap.NewSearchRequest("DC=part,DC=test", ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(sAMAccountName=svc-read)", []string{"cn"}, nil))
	if err != nil || len(found.Entries) != 1 {
		t.Fatal(found, err)
	}
	m := ldap.NewModifyRequest(found.Entries[0].DN, nil)
	m.Replace(userCertificate, []string{string(mailCertificate(t).Raw)})
	if err := admin.Modify(m); err != nil {
		t.Fatal(err)
	}
	var owners []string
	if _, err := coverage.Run(t.Context(), w.CoverageOptions(true), func(c coverage.Certificate) error {
		owners = append(owners, c.Owner)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bob@LAB.TEST", "svc-read@PART.TEST"} {
		if !slices.Contains(owners, want) {
			t.Errorf("%s is not among %v", want, owners)
		}
	}
}
