package soap

import "fmt"

// encode writes the RSTRC of an issued or pending request ([MS-WSTEP] 3.1.4.1.1.2). The order of elements is the one
// that AD CS uses.
func (t *TokenReply) encode(w *writer) {
	w.open(`RequestSecurityTokenResponseCollection xmlns="` + nsTrust + `"`)
	w.open("RequestSecurityTokenResponse")
	w.text("TokenType", tokenTypeX509)
	message, language := t.Message, t.Language
	if message == "" {
		message = "Issued"
		if t.Pending {
			message = "Taken Under Submission" // AD CS's words ([MS-WCCE] 3.2.1.4.2.1)
		}
	}
	if language == "" {
		language = "en-US"
	}
	w.WriteString(`<DispositionMessage xml:lang="`)
	w.escape(language)
	w.WriteString(`" xmlns="` + nsEnrollment + `">`)
	w.escape(message)
	w.close("DispositionMessage")
	encodeToken(w, valueTypePKCS7, t.PKCS7)
	w.open("RequestedSecurityToken")
	if t.Pending {
		w.WriteString(`<SecurityTokenReference xmlns="` + nsSecext + `"><Reference URI="`)
		w.escape(t.Reference)
		w.WriteString(`"/></SecurityTokenReference>`)
	} else {
		encodeToken(w, tokenTypeX509, t.Certificate)
	}
	w.close("RequestedSecurityToken")
	w.open(`RequestID xmlns="` + nsEnrollment + `"`)
	w.escape(t.RequestID)
	w.close("RequestID")
	w.close("RequestSecurityTokenResponse")
	w.close("RequestSecurityTokenResponseCollection")
}

// encodeKeyExchange writes the answer to a key exchange request ([MS-WSTEP] 3.1.4.2.1.2; example 4.1.2.2).
func encodeKeyExchange(w *writer, certificate []byte) {
	w.open(`RequestSecurityTokenResponseCollection xmlns="` + nsTrust + `"`)
	w.open("RequestSecurityTokenResponse")
	w.text("TokenType", tokenTypeX509)
	w.open("RequestedSecurityToken")
	w.open("KeyExchangeToken")
	encodeToken(w, tokenTypeX509, certificate)
	w.close("KeyExchangeToken")
	w.close("RequestedSecurityToken")
	w.close("RequestSecurityTokenResponse")
	w.close("RequestSecurityTokenResponseCollection")
}

// singleResponse opens the collection, which must hold one response.
func singleResponse(body *element) (*element, error) {
	if !body.is(nsTrust, "RequestSecurityTokenResponseCollection") {
		return nil, fmt.Errorf("the reply is %s, not RequestSecurityTokenResponseCollection", body.name.Local)
	}
	return body.need(nsTrust, "RequestSecurityTokenResponse")
}

// decodeTokenReply reads an RSTRC.
func decodeTokenReply(body *element) (*TokenReply, error) {
	rstr, err := singleResponse(body)
	if err != nil {
		return nil, err
	}
	t := &TokenReply{}
	enroll := &reader{e: rstr, space: nsEnrollment}
	t.Message, t.RequestID = enroll.text("DispositionMessage"), enroll.text("RequestID")
	if enroll.err != nil {
		return nil, enroll.err
	}
	if m, _ := rstr.optional(nsEnrollment, "DispositionMessage"); m != nil {
		t.Language = m.attr("http://www.w3.org/XML/1998/namespace", "lang")
	}
	secext := &reader{e: rstr, space: nsSecext}
	t.PKCS7 = secext.octets("BinarySecurityToken")
	if secext.err != nil {
		return nil, secext.err
	}
	token, err := rstr.need(nsTrust, "RequestedSecurityToken")
	if err != nil {
		return nil, err
	}
	r := &reader{e: token, space: nsSecext}
	t.Certificate = r.octets("BinarySecurityToken")
	reference := r.maybe("SecurityTokenReference").maybe("Reference")
	if r.err != nil {
		return nil, r.err
	}
	switch {
	case len(t.Certificate) > 0 && reference.e == nil:
	case len(t.Certificate) == 0 && reference.e != nil:
		t.Pending, t.Reference = true, reference.e.attr("", "URI")
	default:
		return nil, fmt.Errorf("the reply holds neither a certificate nor a reference to a pending request, or both")
	}
	return t, nil
}

// decodeKeyExchange reads the exchange certificate out of a KETFinal message.
func decodeKeyExchange(body *element) ([]byte, error) {
	rstr, err := singleResponse(body)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"RequestedSecurityToken", "KeyExchangeToken"} {
		if rstr, err = rstr.need(nsTrust, name); err != nil {
			return nil, err
		}
	}
	token, err := rstr.need(nsSecext, "BinarySecurityToken")
	if err != nil {
		return nil, err
	}
	return token.base64()
}
