package rpc

import (
	"bytes"
	"crypto"
	"strconv"
	"testing"

	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"

	gatewayconfig "github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

func TestARenewalComesByRPC(t *testing.T) {
	start(t)
	c := mustDial(t, "alice", how{port: true})
	der, oldKey := world.Request(t, "LabUserAuth", nil)
	old := testpki.Cert(t, ask(t, c, &icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(der)}).EncodedCert.Buffer)
	renew := func(signer crypto.Signer) *icertpassage.CertServerRequestResponse {
		t.Helper()
		der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(t, 2048), Renews: old, RenewsKey: signer,
			Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("LabUserAuth")}}})
		if err != nil {
			t.Fatal(err)
		}
		return ask(t, c, &icertpassage.CertServerRequestRequest{Flags: cmc | full, Request: blob(der)})
	}
	out := renew(oldKey)
	if out.Disposition != 3 {
		t.Fatalf("disposition 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	if renewed := testpki.Cert(t, out.EncodedCert.Buffer); renewed.SerialNumber.Cmp(old.SerialNumber) == 0 || !bytes.Equal(renewed.RawSubject, old.RawSubject) {
		t.Errorf("renewed %v", renewed.Subject)
	}
	if out := renew(testpki.RSA(t, 2048)); hresult.Code(out.Disposition) != hresult.InvalidData || out.Return != 0 {
		t.Errorf("signed by another key: 0x%x", out.Disposition)
	}
}

func TestAnAgentEnrollsOthersByRPC(t *testing.T) {
	w := world.StartChanged(t, "", func(c *gatewayconfig.Config) {
		c.Listen.RPC, c.Listen.EPM = rpcAddress(), "off"
		c.EnrollmentAgents = []gatewayconfig.AgentRule{{Agents: []string{`LAB\helpdesk`}, Subjects: []string{`LAB\bob`}, Templates: []string{"Badge"}}}
	})
	w.CopyTemplate(t, "LabOnBehalf", "Badge", map[string]string{"mspki-cert-template-oid": "1.3.6.1.4.1.99999.77.9",
		"mspki-enrollment-flag": strconv.Itoa(int(templates.EnrollAllowOnBehalfOf))})
	c := mustDial(t, "helpdesk", how{port: true})
	der, key := world.Request(t, "LabEnrollmentAgent", nil)
	out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(der)})
	if out.Disposition != 3 {
		t.Fatalf("the agent's own: 0x%x, %q", out.Disposition, text(out.DispositionMessage.Buffer))
	}
	agent := testpki.Cert(t, out.EncodedCert.Buffer)
	for account, want := range map[string]uint32{`LAB\bob`: 3, `LAB\alice`: 0} {
		der, err := wcce.NewRequest(wcce.RequestOptions{Key: testpki.RSA(t, 2048), Signers: []wcce.RequestSigner{{Certificate: agent, Key: key}}, RequestorName: account,
			Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("Badge")}}})
		if err != nil {
			t.Fatal(err)
		}
		out := ask(t, c, &icertpassage.CertServerRequestRequest{Flags: cmc, Request: blob(der)})
		if want != 0 && out.Disposition != want || want == 0 && (out.Disposition == 3 || out.Disposition == 5) {
			t.Errorf("%s: 0x%x, %q", account, out.Disposition, text(out.DispositionMessage.Buffer))
		}
	}
}
