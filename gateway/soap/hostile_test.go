package soap

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/templates"
)

func soapMessage(header, body string) string {
	return `<s:Envelope xmlns:s="` + nsSOAP + `" xmlns:a="` + nsAddressing + `" xmlns:xsi="` + nsInstance + `" xmlns:p="` + nsPolicy +
		`" xmlns:t="` + nsTrust + `" xmlns:e="` + nsEnrollment + `" xmlns:o="` + nsSecext + `"><s:Header>` + header + `</s:Header><s:Body>` + body + `</s:Body></s:Envelope>`
}

const (
	getHeader = `<a:Action>` + actionGetPolicies + `</a:Action><a:MessageID>urn:x</a:MessageID>`
	getBody   = `<p:GetPolicies><p:client><p:lastUpdate xsi:nil="true"/><p:preferredLanguage xsi:nil="1"/></p:client><p:requestFilter xsi:nil="true"/></p:GetPolicies>`
	rstHeader = `<a:Action>` + actionToken + `</a:Action>`
)

func rst(requestType, rest string) string {
	return `<t:RequestSecurityToken><t:RequestType>` + requestType + `</t:RequestType>` + rest + `</t:RequestSecurityToken>`
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	deep := strings.Repeat("<x>", 100) + strings.Repeat("</x>", 100)
	wide := strings.Repeat("<x/>", 10_000)
	bomb := `<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>`
	for name, tc := range map[string]struct{ message, want string }{
		"empty":                           {"", "empty"},
		"not XML":                         {"hello", "outside of the root"},
		"cut off":                         {soapMessage(getHeader, getBody)[:400], "XML"},
		"a document type declaration":     {bomb + soapMessage(getHeader, getBody), "document type"},
		"an external entity":              {`<!DOCTYPE x SYSTEM "file:///etc/passwd">` + soapMessage(getHeader, getBody), "document type"},
		"an unknown entity":               {soapMessage(getHeader, `<p:GetPolicies>&b;</p:GetPolicies>`), "entity"},
		"a processing instruction":        {`<?php x?>` + soapMessage(getHeader, getBody), "processing instruction"},
		"a late XML declaration":          {soapMessage(getHeader, `<?xml version="1.0"?>`+getBody), "processing instruction"},
		"another encoding":                {`<?xml version="1.0" encoding="utf-16"?>` + soapMessage(getHeader, getBody), "XML"},
		"invalid UTF-8":                   {soapMessage(getHeader, "\xff\xfe"+getBody), "UTF-8"},
		"too deep":                        {soapMessage(getHeader, deep), "levels"},
		"too many elements":               {soapMessage(getHeader, wide), "tokens"},
		"two roots":                       {soapMessage(getHeader, getBody) + "<x/>", "second root"},
		"SOAP 1.1":                        {strings.ReplaceAll(soapMessage(getHeader, getBody), nsSOAP, "http://schemas.xmlsoap.org/soap/envelope/"), "SOAP 1.2"},
		"no body":                         {`<s:Envelope xmlns:s="` + nsSOAP + `"/>`, "Body is missing"},
		"two payloads":                    {soapMessage(getHeader, getBody+getBody), "2 elements"},
		"no action":                       {soapMessage("", getBody), "answers GetPolicies"},
		"the action of another":           {soapMessage(rstHeader, getBody), "answers GetPolicies"},
		"an unknown header to understand": {soapMessage(getHeader+`<x:y xmlns:x="urn:x" s:mustUnderstand="1"/>`, getBody), "must be understood"},
		"a reply address elsewhere":       {soapMessage(getHeader+`<a:ReplyTo><a:Address>http://evil.test/</a:Address></a:ReplyTo>`, getBody), "anonymous"},
		"no client":                       {soapMessage(getHeader, `<p:GetPolicies/>`), "client is missing"},
		"a nil client":                    {soapMessage(getHeader, `<p:GetPolicies><p:client xsi:nil="true"/></p:GetPolicies>`), "client is missing"},
		"a time that is none":             {soapMessage(getHeader, `<p:GetPolicies><p:client><p:lastUpdate>20090-03-15-T09:38:46</p:lastUpdate></p:client></p:GetPolicies>`), "not a time"},
		"a version that is none":          {soapMessage(getHeader, `<p:GetPolicies><p:client/><p:requestFilter><p:clientVersion>x</p:clientVersion></p:requestFilter></p:GetPolicies>`), "not a version"},
	} {
		t.Run(name, func(t *testing.T) {
			env, err := parseEnvelope([]byte(tc.message), requestLimits)
			if err == nil {
				_, err = parseGetPolicies(env)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func TestMalformedTokenRequestsAreRefused(t *testing.T) {
	token := func(s string) string { return `<o:BinarySecurityToken>` + s + `</o:BinarySecurityToken>` }
	for name, tc := range map[string]struct{ body, want string }{
		"no request type":              {`<t:RequestSecurityToken/>`, "RequestType"},
		"an unknown request type":      {rst("urn:renew", ""), "RequestType"},
		"a key exchange by the action": {rst(requestKeyExchange, ""), "RequestType"},
		"no token":                     {rst(requestIssue, ""), "missing or empty"},
		"an empty token":               {rst(requestIssue, token("")), "missing or empty"},
		"two tokens":                   {rst(requestIssue, token("MAA=")+token("MAA=")), "more than one"},
		"not base64":                   {rst(requestIssue, token("M?A=")), "illegal base64"},
		"not DER":                      {rst(requestIssue, token("AAAA")), "neither a PKCS#10 nor"},
		"octets after the end":         {rst(requestIssue, token("MAAA")), "neither a PKCS#10 nor"},
		"markup in the token":          {rst(requestIssue, token("<x/>MAA=")), "unexpected element"},
		"hexadecimal":                  {rst(requestIssue, `<o:BinarySecurityToken EncodingType="urn:hex">3000</o:BinarySecurityToken>`), "EncodingType"},
		"a poll without number":        {rst(requestStatus, ""), "RequestID is missing"},
		"a poll with nil":              {rst(requestStatus, `<e:RequestID xsi:nil="true"/>`), "RequestID is missing"},
		"a poll with a long number":    {rst(requestStatus, `<e:RequestID>`+strings.Repeat("1", 100)+`</e:RequestID>`), "not the number"},
		"a poll with markup":           {rst(requestStatus, `<e:RequestID>1'&#10;2</e:RequestID>`), "not the number"},
		"another token type":           {`<t:RequestSecurityToken><t:TokenType>urn:saml</t:TokenType></t:RequestSecurityToken>`, "TokenType"},
		"context without name":         {rst(requestIssue, token("MAA=")+`<c:AdditionalContext xmlns:c="`+nsContext+`"><c:ContextItem><c:Value>1</c:Value></c:ContextItem></c:AdditionalContext>`), "ContextItem"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseTokenRequest(mustParse(t, []byte(soapMessage(rstHeader, tc.body))))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func TestTokensMayHaveAnyLineBreaks(t *testing.T) {
	for _, encoded := range []string{"MAMCAQE=", "MAMC\nAQE=", "\r\nMAMC\r\nAQE=\r\n", "MAMC&#xD;\nAQE=", " M A M C A Q E = "} {
		req, err := parseTokenRequest(mustParse(t, []byte(soapMessage(rstHeader, rst(requestIssue, `<o:BinarySecurityToken>`+encoded+`</o:BinarySecurityToken>`)))))
		if err != nil || !bytes.Equal(req.Token, []byte{0x30, 3, 2, 1, 1}) {
			t.Errorf("%q: %x %v", encoded, req.Token, err)
		}
	}
}

// post sends raw octets to a handler that sees alice, or nobody.
func post(t *testing.T, h http.Handler, method, path, contentType, body string, known bool) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if known {
		r = r.WithContext(kerberos.WithCaller(r.Context(), templates.Caller{Principal: "alice@LAB.TEST"}))
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHTTPAnswers(t *testing.T) {
	h := NewHandler(&fakeBackend{policies: &Policies{ID: "{x}"}}, Options{MaxBody: 4096})
	good := soapMessage(getHeader, getBody)
	cep, soap12 := Kerberos.CEPPath, "application/soap+xml; charset=utf-8"
	for name, tc := range map[string]struct {
		method, path, contentType, body string
		unknown                         bool
		status                          int
		want                            string
	}{
		"a good request":               {"POST", cep, soap12, good, false, 200, "<policyID>{x}</policyID>"},
		"the path in another case":     {"POST", strings.ToLower(cep), "Application/SOAP+XML", good, false, 200, "policyID"},
		"a byte order mark":            {"POST", cep, soap12, "\xef\xbb\xbf" + good, false, 200, "policyID"},
		"a probe":                      {"GET", cep, "", "", true, 200, "POST"},
		"a probe of an enrollment URI": {"HEAD", cesPath, "", "", true, 200, ""},
		"nobody":                       {"POST", cep, soap12, good, true, 401, "Kerberos"},
		"another method":               {"PUT", cep, soap12, good, false, 405, "POST"},
		"another path":                 {"POST", "/x", soap12, good, false, 404, cep},
		"no CA in the path":            {"POST", "/_CES_Kerberos/service.svc/CES", soap12, good, false, 404, cep},
		"a path inside the CA's name":  {"POST", "/a%2Fb_CES_Kerberos/service.svc/CES", soap12, good, false, 404, cep},
		"SOAP 1.1":                     {"POST", cep, "text/xml; charset=utf-8", good, false, 415, "application/soap+xml"},
		"no content type":              {"POST", cep, "", good, false, 415, "application/soap+xml"},
		"another charset":              {"POST", cep, "application/soap+xml; charset=latin1", good, false, 415, "utf-8"},
		"too long":                     {"POST", cep, soap12, good + strings.Repeat(" ", 4096), false, 413, "more than 4096 octets"},
		"the wrong service":            {"POST", cesPath, soap12, good, false, 500, "RequestSecurityToken"},
	} {
		t.Run(name, func(t *testing.T) {
			w := post(t, h, tc.method, tc.path, tc.contentType, tc.body, !tc.unknown)
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("%d %s, want %d %q", w.Code, w.Body, tc.status, tc.want)
			}
		})
	}
}

func TestFaultNamesTheMessageAndTheHeader(t *testing.T) {
	h := NewHandler(&fakeBackend{}, Options{})
	w := post(t, h, "POST", Kerberos.CEPPath, contentType, soapMessage(getHeader+`<x:y xmlns:x="urn:x" s:mustUnderstand="true"/>`, getBody), true)
	for _, want := range []string{"<s:Value>s:MustUnderstand</s:Value>", "<a:RelatesTo>urn:x</a:RelatesTo>", "the header y must be understood"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d %s does not hold %q", w.Code, w.Body, want)
		}
	}
}

func TestPanicIsAFaultOfOneRequest(t *testing.T) {
	log, hook := test.NewNullLogger()
	h := NewHandler(&fakeBackend{panics: true}, Options{Log: log})
	w := post(t, h, "POST", cesPath, contentType, soapMessage(rstHeader, rst(requestStatus, `<e:RequestID>1</e:RequestID>`)), true)
	if w.Code != 500 || !strings.Contains(w.Body.String(), "<ErrorCode>-2147418113</ErrorCode>") || strings.Contains(w.Body.String(), "a bug") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var logged bool
	for _, e := range hook.AllEntries() {
		logged = logged || e.Level == logrus.ErrorLevel && strings.Contains(e.Message, "a bug") && e.Data["stack"] != ""
	}
	if !logged {
		t.Error("the panic is not in the log")
	}
}

// seeds are all messages in testdata.
func seeds(f *testing.F) {
	names, err := filepath.Glob("testdata/*.xml")
	if err != nil || len(names) == 0 {
		f.Fatal("no seeds: ", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzGetPolicies checks that what is accepted means the same after being written and read again.
func FuzzGetPolicies(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		env, err := parseEnvelope(b, requestLimits)
		if err != nil {
			return
		}
		if req, err := parseGetPolicies(env); err == nil {
			again, err := parseGetPolicies(mustParse(t, request(actionGetPolicies, "urn:x", "https://x", nil, req.encode)))
			if err != nil || fmt.Sprint(again.PolicyOIDs, again.ClientVersion) != fmt.Sprint(req.PolicyOIDs, req.ClientVersion) {
				t.Errorf("%+v became %+v: %v", req, again, err)
			}
		}
		if p, err := decodePolicies(env.body); err == nil {
			if _, err := decodePolicies(mustParse(t, reply{}.message("x", func(w *writer) { w.Write(p.Encode()) })).body); err != nil {
				t.Errorf("own encoding is refused: %v", err)
			}
		}
	})
}

func FuzzTokenRequest(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		env, err := parseEnvelope(b, requestLimits)
		if err != nil {
			return
		}
		if req, err := parseTokenRequest(env); err == nil {
			again, err := parseTokenRequest(mustParse(t, request(req.Kind.action(), "urn:x", "https://x", nil, req.encode)))
			if err != nil || again.Kind != req.Kind || again.RequestID != req.RequestID || !bytes.Equal(again.Token, req.Token) {
				t.Errorf("%+v became %+v: %v", req, again, err)
			}
		}
		if reply, err := decodeTokenReply(env.body); err == nil && (reply.Pending == (len(reply.Certificate) > 0)) {
			t.Errorf("neither pending nor issued: %+v", reply)
		}
		_, _ = decodeKeyExchange(env.body)
		_ = decodeFault(env.body)
	})
}
