package soap

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// parseGetPolicies reads a GetPolicies message ([MS-XCEP] 3.1.4.1.1.1).
func parseGetPolicies(env *envelope) (GetPoliciesRequest, error) {
	req := GetPoliciesRequest{MessageID: env.messageID, Action: env.action}
	if env.action != actionGetPolicies || !env.body.is(nsPolicy, "GetPolicies") {
		return req, senderFault("ActionNotSupported", "this endpoint answers GetPolicies, not %q (%s)", env.action, env.body.name.Local)
	}
	client, err := env.body.need(nsPolicy, "client")
	if err != nil {
		return req, malformed(err)
	}
	r := &reader{e: client, space: nsPolicy}
	if req.LastUpdate, err = parseTime(r.text("lastUpdate")); err != nil {
		return req, malformed(err)
	}
	req.PreferredLanguage = r.text("preferredLanguage")
	body := &reader{e: env.body, space: nsPolicy}
	filter := body.maybe("requestFilter")
	if filter.e != nil {
		oids := filter.maybe("policyOIDs")
		for _, o := range oids.all("oid") {
			req.PolicyOIDs = append(req.PolicyOIDs, o.value())
			filter.fail(o.err)
		}
		filter.fail(oids.err)
		req.ClientVersion, req.ServerVersion = filter.version("clientVersion"), filter.version("serverVersion")
	}
	for _, err := range []error{r.err, body.err, filter.err} {
		if err != nil {
			return req, malformed(err)
		}
	}
	return req, nil
}

// version reads a schema version; nil is 0, no filter.
func (r *reader) version(local string) int {
	v := r.text(local)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 0 {
		r.fail(fmt.Errorf("%s: %s %q is not a version", r.name(), local, v))
	}
	return int(n)
}

// parseTime reads an xs:dateTime in GMT, with or without a zone. The year 1 is how Windows says never.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			if t.Year() <= 1 {
				return time.Time{}, nil
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("lastUpdate %q is not a time", s)
}

// maxRequestID bounds the number of a request, which is a decimal number in all known servers.
const maxRequestID = 64

// parseTokenRequest reads a RequestSecurityToken message ([MS-WSTEP] 3.1.4.1.1.1 and 3.1.4.2.1.1).
func parseTokenRequest(env *envelope) (TokenRequest, error) {
	req := TokenRequest{MessageID: env.messageID, Action: env.action}
	if env.action != actionToken && env.action != actionKeyExchange || !env.body.is(nsTrust, "RequestSecurityToken") {
		return req, senderFault("ActionNotSupported", "this endpoint answers RequestSecurityToken, not %q (%s)", env.action, env.body.name.Local)
	}
	r := &reader{e: env.body, space: nsTrust}
	if t := r.text("TokenType"); t != "" && t != tokenTypeX509 {
		return req, malformed(fmt.Errorf("TokenType is %q, need X.509 version 3", t))
	}
	requestType := r.text("RequestType")
	if r.err != nil {
		return req, malformed(r.err)
	}
	var err error
	switch {
	case requestType == requestIssue && env.action == actionToken:
		req.Kind = Issue
		req.Token, err = parseToken(env.body)
		if err == nil && len(req.Token) == 0 {
			err = fmt.Errorf("BinarySecurityToken is missing or empty")
		}
	case requestType == requestStatus && env.action == actionToken:
		req.Kind = QueryTokenStatus
		req.RequestID, err = parseRequestID(env.body)
	case requestType == requestKeyExchange && env.action == actionKeyExchange:
		req.Kind = KeyExchange
	default:
		return req, senderFault("", "RequestType %q is not supported with the action %q", requestType, env.action)
	}
	if err == nil {
		req.Context, err = parseContext(env.body)
	}
	if err != nil {
		return req, malformed(err)
	}
	return req, nil
}

// parseToken decodes the BinarySecurityToken. ValueType says PKCS7 even for a bare PKCS#10, so it is not read; that the
// token is one DER SEQUENCE is checked.
func parseToken(body *element) ([]byte, error) {
	e, err := body.optional(nsSecext, "BinarySecurityToken")
	if e == nil || err != nil {
		return nil, err
	}
	if enc := e.attr("", "EncodingType"); enc != "" && enc != encodingBase64 {
		return nil, fmt.Errorf("BinarySecurityToken: EncodingType %q, need base64binary", enc)
	}
	der, err := e.base64()
	if err != nil || len(der) == 0 {
		return nil, err
	}
	s := cryptobyte.String(der)
	var content cryptobyte.String
	// A CMS made by a streaming encoder may be BER of indefinite length: only the tag is common to all.
	if der[0] != byte(cbasn1.SEQUENCE) || len(der) < 2 || der[1] != 0x80 && (!s.ReadASN1(&content, cbasn1.SEQUENCE) || !s.Empty()) {
		return nil, fmt.Errorf("BinarySecurityToken: neither a PKCS#10 nor a CMS structure")
	}
	return der, nil
}

func parseRequestID(body *element) (string, error) {
	e, err := body.need(nsEnrollment, "RequestID")
	if err != nil {
		return "", err
	}
	id, err := e.leaf()
	if err != nil {
		return "", err
	}
	if id == "" || len(id) > maxRequestID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("RequestID %.64q is not the number of a request", id)
	}
	return id, nil
}

// parseContext reads AdditionalContext ([MS-WSTEP] 3.1.4.1.3.3).
func parseContext(body *element) ([]ContextItem, error) {
	e, err := body.optional(nsContext, "AdditionalContext")
	if e == nil || err != nil {
		return nil, err
	}
	var items []ContextItem
	for _, item := range e.children {
		if !item.is(nsContext, "ContextItem") {
			continue
		}
		name := item.attr("", "Name")
		value, err := item.need(nsContext, "Value")
		if name == "" || err != nil {
			return nil, fmt.Errorf("ContextItem %q: no name or no value", name)
		}
		text, err := value.leaf()
		if err != nil {
			return nil, err
		}
		items = append(items, ContextItem{Name: name, Value: text})
	}
	return items, nil
}

// encode writes the body of a GetPolicies message.
func (req GetPoliciesRequest) encode(w *writer) {
	w.open(`GetPolicies xmlns="` + nsPolicy + `" xmlns:xsi="` + nsInstance + `"`)
	w.open("client")
	last := ""
	if !req.LastUpdate.IsZero() {
		last = req.LastUpdate.UTC().Format("2006-01-02T15:04:05Z")
	}
	w.textOrNil("lastUpdate", last)
	w.textOrNil("preferredLanguage", req.PreferredLanguage)
	w.close("client")
	w.open("requestFilter")
	texts(w, "policyOIDs", "oid", req.PolicyOIDs)
	w.text("clientVersion", strconv.Itoa(req.ClientVersion))
	w.text("serverVersion", strconv.Itoa(req.ServerVersion))
	w.close("requestFilter")
	w.close("GetPolicies")
}

// action is the WS-Addressing action of the request.
func (k Kind) action() string {
	if k == KeyExchange {
		return actionKeyExchange
	}
	return actionToken
}

// encode writes the body of a RequestSecurityToken message.
func (req TokenRequest) encode(w *writer) {
	w.open(`RequestSecurityToken xmlns="` + nsTrust + `" xmlns:xsi="` + nsInstance + `"`)
	w.text("TokenType", tokenTypeX509)
	switch req.Kind {
	case Issue:
		w.text("RequestType", requestIssue)
		encodeToken(w, valueTypePKCS7, req.Token)
	case QueryTokenStatus:
		w.text("RequestType", requestStatus)
	case KeyExchange:
		w.text("RequestType", requestKeyExchange)
		w.WriteString("<RequestKET/>")
	}
	if req.Kind == QueryTokenStatus {
		w.open(`RequestID xmlns="` + nsEnrollment + `"`)
		w.escape(req.RequestID)
		w.close("RequestID")
	} else {
		w.WriteString(`<RequestID xsi:nil="true" xmlns="` + nsEnrollment + `"/>`)
	}
	if len(req.Context) > 0 {
		w.open(`AdditionalContext xmlns="` + nsContext + `"`)
		for _, item := range req.Context {
			w.WriteString(`<ContextItem Name="`)
			w.escape(item.Name)
			w.WriteString(`">`)
			w.text("Value", item.Value)
			w.close("ContextItem")
		}
		w.close("AdditionalContext")
	}
	w.close("RequestSecurityToken")
}

// encodeToken writes a BinarySecurityToken.
func encodeToken(w *writer, valueType string, der []byte) {
	w.open(`BinarySecurityToken ValueType="` + valueType + `" EncodingType="` + encodingBase64 + `" xmlns="` + nsSecext + `"`)
	w.base64(der)
	w.close("BinarySecurityToken")
}
