package e2e

import (
	"crypto/tls"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/client"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

const certificateListener = ":8443"

// everyWay opens the gateway for client certificates and for passwords too.
func everyWay(c *config.Config) {
	c.Listen.Certificate, c.Kerberos.PasswordLogon = certificateListener, true
}

// byPassword enrolls with user name and password.
func byPassword(w *world.World, user, password, template string) client.Options {
	return client.Options{PolicyURL: "https://" + world.Env("LAB_GATEWAY") + soap.Password.CEPPath, HTTP: w.HTTP(),
		Authentication: soap.AuthPassword, Credentials: &soap.UsernameToken{User: user, Password: password}, Template: template}
}

// byCertificate renews with the certificate as the only proof.
func byCertificate(w *world.World, r *client.Result, template string) client.Options {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{r.Certificate.Raw}, PrivateKey: r.Key}}}}
	return client.Options{PolicyURL: "https://" + world.Env("LAB_GATEWAY") + certificateListener + soap.Certificate.CEPPath,
		HTTP: &http.Client{Transport: transport, Timeout: 20 * time.Second}, Authentication: soap.AuthCertificate, Template: template,
		Renews: &wcce.RequestSigner{Certificate: r.Certificate, Key: r.Key}}
}

func mustEnroll(t testing.TB, o client.Options) *client.Result {
	t.Helper()
	r, err := client.Enroll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTheOtherWaysInAreOffUnlessConfigured(t *testing.T) {
	w := world.Start(t)
	p, err := w.Client(t, "alice").GetPolicies(t.Context(), "https://"+world.Env("LAB_GATEWAY")+soap.Kerberos.CEPPath, soap.GetPoliciesRequest{})
	if err != nil || len(p.CAs[0].URIs) != 1 || p.CAs[0].URIs[0].ClientAuthentication != soap.AuthKerberos {
		t.Errorf("addresses %+v, %v", p, err)
	}
	_, err = client.Enroll(t.Context(), byPassword(w, "alice", world.Env("LAB_PASSWORD"), "LabUserAuth"))
	wantFault(t, err, hresult.AccessDenied, "Negotiate")
	if _, err := tls.Dial("tcp", world.Env("LAB_GATEWAY")+certificateListener, &tls.Config{RootCAs: w.Roots}); err == nil {
		t.Error("somebody listens for client certificates")
	}
}

func TestThePolicyListsEveryWayWithTypeAndPriority(t *testing.T) {
	w := world.StartChanged(t, "", everyWay)
	p, err := w.Client(t, "alice").GetPolicies(t.Context(), "https://"+world.Env("LAB_GATEWAY")+soap.Kerberos.CEPPath, soap.GetPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range p.CAs[0].URIs {
		got = append(got, strconv.Itoa(u.ClientAuthentication)+" "+strconv.Itoa(int(*u.Priority))+" "+strconv.FormatBool(u.RenewalOnly)+" "+u.URI)
	}
	host := "https://" + world.Env("LAB_GATEWAY")
	want := []string{"2 1 false " + host + "/LAB%20Issuing%20CA_CES_Kerberos/service.svc/CES",
		"8 2 true " + host + certificateListener + "/LAB%20Issuing%20CA_CES_Certificate/service.svc/CES",
		"4 3 false " + host + "/LAB%20Issuing%20CA_CES_UsernamePassword/service.svc/CES"}
	if !slices.Equal(got, want) {
		t.Errorf("addresses\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestUserNameAndPasswordAreCheckedByTheKDC(t *testing.T) {
	w := world.StartChanged(t, "", everyWay)
	password := world.Env("LAB_PASSWORD")
	for _, user := range []string{"alice", `LAB\alice`, "alice@lab.test"} {
		r := mustEnroll(t, byPassword(w, user, password, "LabUserAuth"))
		if !strings.Contains(r.Certificate.Subject.String(), "Alice") {
			t.Errorf("%s: certificate for %s", user, r.Certificate.Subject)
		}
	}
	for user, wrong := range map[string]string{"nobody": password, "": password, "alice": ""} {
		_, err := client.Enroll(t.Context(), byPassword(w, user, wrong, "LabUserAuth"))
		wantFault(t, err, hresult.LogonFailure)
	}
}

// The domain locks an account after as many wrong passwords as it would anywhere else.
func TestWrongPasswordsLockTheAccountAsTheDomainSays(t *testing.T) {
	w := world.StartChanged(t, "", everyWay)
	const threshold = 3
	setAttribute(t, world.Env("LAB_BASE_DN"), "lockoutThreshold", strconv.Itoa(threshold))
	t.Cleanup(func() { setAttribute(t, world.Env("LAB_BASE_DN"), "lockoutThreshold", "0") })
	bob := "CN=Bob Baker,CN=Users," + world.Env("LAB_BASE_DN")
	t.Cleanup(func() { setAttribute(t, bob, "lockoutTime", "0") })
	for i := range threshold {
		_, err := client.Enroll(t.Context(), byPassword(w, "bob", "wrong", "LabUserAuth"))
		wantFault(t, err, hresult.LogonFailure)
		if n := badPasswords(t, "bob"); n != i+1 {
			t.Errorf("after %d wrong passwords the domain counts %d", i+1, n)
		}
	}
	_, err := client.Enroll(t.Context(), byPassword(w, "bob", world.Env("LAB_PASSWORD"), "LabUserAuth"))
	wantFault(t, err, hresult.LogonFailure, "locked, disabled or expired")
	setAttribute(t, bob, "lockoutTime", "0")
	mustEnroll(t, byPassword(w, "bob", world.Env("LAB_PASSWORD"), "LabUserAuth"))
}

// setAttribute writes one attribute as Administrator.
func setAttribute(t testing.TB, dn, name, value string) {
	t.Helper()
	m := ldap.NewModifyRequest(dn, nil)
	m.Replace(name, []string{value})
	if err := world.Admin(t).Modify(m); err != nil {
		t.Fatalf("%s of %s: %v", name, dn, err)
	}
}

// badPasswords is how many wrong passwords the domain has counted of an account.
func badPasswords(t testing.TB, account string) int {
	t.Helper()
	res, err := world.Admin(t).Search(ldap.NewSearchRequest(world.Env("LAB_BASE_DN"), ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
		"(sAMAccountName="+account+")", []string{"badPwdCount"}, nil))
	if err != nil || len(res.Entries) != 1 {
		t.Fatalf("%s: %v", account, err)
	}
	n, err := strconv.Atoi(res.Entries[0].GetAttributeValue("badPwdCount"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestACertificateIsRenewedWithoutKerberos(t *testing.T) {
	w := world.StartChanged(t, "", everyWay)
	first := mustEnroll(t, byPassword(w, "alice", world.Env("LAB_PASSWORD"), "LabUserAuth"))
	second := mustEnroll(t, byCertificate(w, first, "LabUserAuth"))
	if second.Certificate.SerialNumber.Cmp(first.Certificate.SerialNumber) == 0 || second.Certificate.Subject.String() != first.Certificate.Subject.String() {
		t.Errorf("renewed: %v", second.Certificate.Subject)
	}

	// A request that says nothing of a renewal renews the client certificate, and gets nothing else.
	c := soap.Client{HTTP: byCertificate(w, second, "LabUserAuth").HTTP}
	ask := func(template string) error {
		der, _ := world.Request(t, template, nil)
		_, err := c.RequestToken(t.Context(), "https://"+world.Env("LAB_GATEWAY")+certificateListener+strings.ReplaceAll(soap.Certificate.CESPath(world.CAName), " ", "%20"),
			soap.TokenRequest{Kind: soap.Issue, Token: der})
		return err
	}
	if err := ask("LabUserAuth"); err != nil {
		t.Error(err)
	}
	err := ask("LabOnBehalf")
	wantFault(t, err, hresult.SignaturePolicyRequired)
	row, err := w.Ledger.List(t.Context(), ledger.Denied, 1)
	if err != nil || !slices.ContainsFunc(row[0].Checks, func(c templates.Check) bool { return !c.Pass && c.Name == "renewal" && c.Code == 0 }) {
		t.Errorf("the certificate of one template renewed another: %+v, %v", row, err)
	}

	// A certificate that this gateway did not issue, and one that was revoked, prove nothing.
	key, cert := testpki.Agent(t, "alice", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	foreign := &client.Result{Certificate: cert, Key: key}
	_, err = client.Enroll(t.Context(), byCertificate(w, foreign, "LabUserAuth"))
	wantFault(t, err, hresult.AccessDenied, "no CA of this gateway has issued it")
	issued, err := w.Ledger.BySerial(t.Context(), world.CAName, second.Certificate.SerialNumber.Text(16))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Revoke(t.Context(), issued, "test", 1); err != nil {
		t.Fatal(err)
	}
	_, err = client.Enroll(t.Context(), byCertificate(w, second, "LabUserAuth"))
	wantFault(t, err, hresult.AccessDenied, "it was revoked on")

	// Nor does one whose account was disabled since.
	alice := "CN=Alice Archer,CN=Users," + world.Env("LAB_BASE_DN")
	setAttribute(t, alice, "userAccountControl", "514")
	t.Cleanup(func() { setAttribute(t, alice, "userAccountControl", "512") })
	_, err = client.Enroll(t.Context(), byCertificate(w, first, "LabUserAuth"))
	wantFault(t, err, hresult.AccessDenied)
}

// A machine of no domain enrolls once with the password of an account, a manager approves, and renews by its key alone, also
// when the account may no longer enroll.
func TestAMachineOfNoDomainRenewsByItsKey(t *testing.T) {
	w := world.StartChanged(t, "", everyWay)
	copyTemplate(t, w, "LabWebServer", "DMZ", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.99999.77.1",
		"mspki-enrollment-flag": strconv.Itoa(int(templates.EnrollPendAllRequests | templates.EnrollPreviousApprovalValidate | templates.EnrollPreviousApprovalKeyBasedRenewal)),
		"pkiextendedkeyusage":   "1.3.6.1.5.5.7.3.2", "mspki-certificate-application-policy": "1.3.6.1.5.5.7.3.2"})
	o := byPassword(w, "helpdesk", world.Env("LAB_PASSWORD"), "DMZ")
	o.Subject, o.SANs = "CN=dmz.example", []string{"dns:dmz.example"}
	pending := mustEnroll(t, o)
	if !pending.Pending {
		t.Fatal("issued without approval")
	}
	id, err := strconv.ParseInt(pending.RequestID, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Ledger.Decide(t.Context(), id, "manager", true, "known machine"); err != nil {
		t.Fatal(err)
	}
	state, err := client.MarshalPending(pending)
	if err != nil {
		t.Fatal(err)
	}
	p, err := client.LoadPending(state)
	if err != nil {
		t.Fatal(err)
	}
	o.PollInterval, o.PollTimeout = 100*time.Millisecond, 10*time.Second
	first, err := client.Poll(t.Context(), o, p)
	if err != nil || first.Pending {
		t.Fatalf("%+v, %v", first, err)
	}
	removeFromGroup(t, "Certificate Managers", "helpdesk")
	o = byPassword(w, "helpdesk", world.Env("LAB_PASSWORD"), "DMZ")
	o.Subject = "CN=dmz.example"
	if _, err := client.Enroll(t.Context(), o); err == nil {
		t.Error("the account may enroll still")
	}
	renewed := mustEnroll(t, byCertificate(w, first, "DMZ"))
	if renewed.Pending || renewed.Certificate.Subject.CommonName != "dmz.example" || !slices.Equal(renewed.Certificate.DNSNames, []string{"dmz.example"}) {
		t.Errorf("renewed: %+v", renewed)
	}
	other := byCertificate(w, first, "DMZ")
	other.Subject = "CN=dc1.lab.test"
	_, err = client.Enroll(t.Context(), other)
	wantFault(t, err, hresult.TemplateDenied, "no Enroll right")
}

// removeFromGroup takes an account out of a group until the test ends.
func removeFromGroup(t testing.TB, group, account string) {
	t.Helper()
	conn := world.Admin(t)
	find := func(name string) string {
		res, err := conn.Search(ldap.NewSearchRequest(world.Env("LAB_BASE_DN"), ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, "(sAMAccountName="+name+")", []string{"cn"}, nil))
		if err != nil || len(res.Entries) != 1 {
			t.Fatalf("%s: %v", name, err)
		}
		return res.Entries[0].DN
	}
	member := []string{find(account)}
	remove, add := ldap.NewModifyRequest(find(group), nil), ldap.NewModifyRequest(find(group), nil)
	remove.Delete("member", member)
	add.Add("member", member)
	if err := conn.Modify(remove); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Modify(add); err != nil {
			t.Error(err)
		}
	})
}

func TestAnEnrollmentAgentEnrollsForOthersWithinItsRules(t *testing.T) {
	w := world.StartChanged(t, "", func(c *config.Config) {
		c.EnrollmentAgents = []config.AgentRule{{Agents: []string{`LAB\Certificate Managers`}, Subjects: []string{"Domain Users"}, Templates: []string{"LabOnBehalf"}}}
	})
	ask := func(account, template string) client.Options {
		c := w.Client(t, account)
		return client.Options{PolicyURL: "https://" + world.Env("LAB_GATEWAY") + soap.Kerberos.CEPPath, HTTP: c.HTTP, Template: template}
	}
	agent := mustEnroll(t, ask("helpdesk", "LabEnrollmentAgent"))
	o := ask("helpdesk", "LabOnBehalf")
	o.Signers, o.OnBehalfOf = []wcce.RequestSigner{{Certificate: agent.Certificate, Key: agent.Key}}, `LAB\bob`
	r := mustEnroll(t, o)
	if !strings.Contains(r.Certificate.Subject.String(), "Bob Baker") {
		t.Errorf("the certificate is for %s", r.Certificate.Subject)
	}
	row, err := w.Ledger.BySerial(t.Context(), world.CAName, r.Certificate.SerialNumber.Text(16))
	if err != nil || row.CallerSID == row.SubjectSID || !strings.HasPrefix(row.Caller, "helpdesk@") {
		t.Errorf("the ledger says %+v, %v", row, err)
	}

	other := o
	other.OnBehalfOf = `LAB\WS1$`
	_, err = client.Enroll(t.Context(), other)
	wantFault(t, err, hresult.TemplateDenied, "is a computer")
	unknown := o
	unknown.OnBehalfOf = `LAB\nobody`
	_, err = client.Enroll(t.Context(), unknown)
	wantFault(t, err, hresult.NoSuchUser, "nobody")
	stolen := ask("alice", "LabOnBehalf")
	stolen.Signers, stolen.OnBehalfOf = o.Signers, o.OnBehalfOf
	_, err = client.Enroll(t.Context(), stolen)
	wantFault(t, err, hresult.RestrictedOfficer, "not signed by an enrollment agent")
	none := ask("alice", "LabOnBehalf")
	none.Force = true
	_, err = client.Enroll(t.Context(), none)
	wantFault(t, err, hresult.SignaturePolicyRequired, "1 signature")
}
