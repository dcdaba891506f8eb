package wcce_test

import (
	"os"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// testdata/onbehalf.py has built the request with another library.
func TestARequestOnBehalfOfOthersNamesThemWhereTheAgentSigns(t *testing.T) {
	der, err := os.ReadFile("testdata/onbehalf.der")
	if err != nil {
		t.Fatal(err)
	}
	r, err := wcce.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if r.RequestorName != `LAB\bob` || r.Format != wcce.PKCS7 || r.Template.Name != "LabOnBehalf" || len(r.Signers) != 1 || r.Signers[0].Certificate.Subject.CommonName != "agent" {
		t.Errorf("%q by %+v", r.RequestorName, r.Signers)
	}

	key := testpki.RSA(t, 2048)
	agentKey, agent := testpki.Agent(t, "agent", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	ours, err := wcce.NewRequest(wcce.RequestOptions{Key: key, RequestorName: `LAB\bob & co`, Signers: []wcce.RequestSigner{{Certificate: agent, Key: agentKey}}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err = wcce.ParseRequest(ours); err != nil || r.RequestorName != `LAB\bob & co` {
		t.Errorf("CMC: %q, %v", r.RequestorName, err)
	}
}

func TestARequestorNameInAnotherPlaceIsRefused(t *testing.T) {
	key := testpki.RSA(t, 2048)
	pair := wcce.AttributeForTest(wcce.OIDNameValuePair, sequence(bmp("RequesterName"), bmp(`LAB\bob`)))
	csr := csrParts{key: key, attributes: [][]byte{pair}}.der(t)
	subject := wcce.SignerForTest{Key: key, KeyID: keyID(t, key.Public())}
	_, err := wcce.ParseRequest(csr)
	wantCode(t, "in a bare PKCS#10", err, hresult.InvalidData, "outside of what an enrollment agent signs")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr), nil, subject))
	wantCode(t, "in the PKCS#10 of a CMC request", err, hresult.InvalidData, "outside of what an enrollment agent signs")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csrParts{key: key}.der(t), control(2, wcce.OIDCMCRegInfo, octets([]byte("RequesterName=a&requestername=b")))), nil, subject))
	wantCode(t, "two names", err, hresult.InvalidData, `"a" and "b"`)
}
