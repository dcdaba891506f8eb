package wcce_test

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/vectors"
)

// archival is a CMC request whose archival parts a test arranges by hand.
type archival struct {
	key    *rsa.PrivateKey
	sealed []byte // a ContentInfo with the key, for whoever
}

func newArchival(t testing.TB) *archival {
	t.Helper()
	a := &archival{key: testpki.RSA(t, 2048)}
	blob, err := wcce.MarshalKeyBlob(a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.sealed, err = wcce.Seal(blob, wcce.OIDDESEDE3CBC, false, newHolder(t, "Xchg").cert); err != nil {
		t.Fatal(err)
	}
	return a
}

// request encloses the sealed keys as unsigned attributes and puts attributes into the add-attributes control.
func (a *archival) request(t testing.TB, enclosed [][]byte, attributes ...[]byte) []byte {
	t.Helper()
	var controls [][]byte
	if len(attributes) > 0 {
		slices.SortFunc(attributes, bytes.Compare)
		controls = append(controls, control(2, wcce.OIDCMCAddAttrs, sequence(integer(0), sequence(integer(1)), set(attributes...))))
	}
	return message(t, wcce.OIDPKIData, cmc(csrParts{key: a.key}.der(t), controls...), nil,
		wcce.SignerForTest{Key: a.key, KeyID: keyID(t, a.key.Public()), Unsigned: enclosed})
}

func hashAttribute(hash []byte) []byte {
	return wcce.AttributeForTest(wcce.OIDArchivedHash, octets(hash))
}

func TestTheHashOfAnEnclosedKeyMayUseAnyAlgorithm(t *testing.T) {
	a := newArchival(t)
	h1, h256, h384, h512 := sha1.Sum(a.sealed), sha256.Sum256(a.sealed), sha512.Sum384(a.sealed), sha512.Sum512(a.sealed)
	for hash, value := range map[crypto.Hash][]byte{crypto.SHA1: h1[:], crypto.SHA256: h256[:], crypto.SHA384: h384[:], crypto.SHA512: h512[:]} {
		r, err := wcce.ParseRequest(a.request(t, [][]byte{wcce.AttributeForTest(wcce.OIDArchivedKey, a.sealed)}, hashAttribute(value)))
		if err != nil {
			t.Fatal(err)
		}
		if r.ArchivedErr != nil || r.Archived.HashAlg != hash || !bytes.Equal(r.Archived.Hash, value) || !bytes.Equal(r.Archived.Raw, a.sealed) {
			t.Errorf("%s: %+v, %v", hash, r.Archived.HashAlg, r.ArchivedErr)
		}
	}
}

func TestUnacceptableArchivalPartsAreNamed(t *testing.T) {
	a := newArchival(t)
	good := sha256.Sum256(a.sealed)
	bad := good
	bad[31] ^= 1
	// The hash covers the whole value, ContentInfo and all: that of the EnvelopedData inside is another one.
	_, inner, err := wcce.ParseContentInfo(a.sealed)
	if err != nil {
		t.Fatal(err)
	}
	innerHash := sha256.Sum256(inner)
	key := wcce.AttributeForTest(wcce.OIDArchivedKey, a.sealed)
	for _, c := range []struct {
		name, want string
		enclosed   [][]byte
		attributes [][]byte
	}{
		{"no hash", "missing or not single", [][]byte{key}, nil},
		{"another hash", "does not match", [][]byte{key}, [][]byte{hashAttribute(bad[:])}},
		{"the hash of a part", "does not match", [][]byte{key}, [][]byte{hashAttribute(innerHash[:])}},
		{"a hash of no known length", "does not match", [][]byte{key}, [][]byte{hashAttribute(good[:31])}},
		{"an empty hash", "does not match", [][]byte{key}, [][]byte{hashAttribute(nil)}},
		{"a hash that is no octet string", "malformed", [][]byte{key}, [][]byte{wcce.AttributeForTest(wcce.OIDArchivedHash, integer(1))}},
		{"two hashes", "missing or not single", [][]byte{key}, [][]byte{hashAttribute(good[:]), hashAttribute(bad[:])}},
		{"two keys", "more than one key", [][]byte{key, key}, [][]byte{hashAttribute(good[:])}},
		{"two keys in one attribute", "more than one key", [][]byte{sequence(oid(wcce.OIDArchivedKey), set(a.sealed, a.sealed))}, [][]byte{hashAttribute(good[:])}},
	} {
		r, err := wcce.ParseRequest(a.request(t, c.enclosed, c.attributes...))
		if err != nil {
			t.Errorf("%s: the request itself is well formed: %v", c.name, err)
			continue
		}
		if r.Archived == nil {
			t.Errorf("%s: the enclosed key went unnoticed", c.name)
		}
		wantCode(t, c.name, r.ArchivedErr, hresult.BadRequestKeyArchival, c.want)
	}

	r, err := wcce.ParseRequest(a.request(t, nil, hashAttribute(good[:])))
	if err != nil || r.Archived != nil || !r.ArchivedHash {
		t.Errorf("a hash without a key must be seen, policy refuses it: %v", err)
	}
}

func TestAKeyEnclosedAtTheWrongPlaceIsRefused(t *testing.T) {
	a := newArchival(t)
	good := sha256.Sum256(a.sealed)
	attr := wcce.AttributeForTest(wcce.OIDArchivedKey, a.sealed)
	otherKey := testpki.RSA(t, 2048)
	cert := certFor(t, "agent", nil, otherKey.Public(), otherKey)
	subject := wcce.SignerForTest{Key: a.key, KeyID: keyID(t, a.key.Public())}
	agent := wcce.SignerForTest{Key: otherKey, Cert: cert, Unsigned: [][]byte{attr}}
	csr := csrParts{key: a.key}.der(t)
	add := control(2, wcce.OIDCMCAddAttrs, sequence(integer(0), sequence(integer(1)), set(hashAttribute(good[:]))))

	r, err := wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(csr, add), []*x509.Certificate{cert}, subject, agent))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "at another signature", r.ArchivedErr, hresult.BadRequestKeyArchival, "not at the request's own signature")

	subject.Unsigned = [][]byte{attr}
	r, err = wcce.ParseRequest(message(t, wcce.OIDData, csr, nil, subject))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "in PKCS#7", r.ArchivedErr, hresult.BadRequestKeyArchival, "only CMC")

	in := csrParts{key: a.key, attributes: [][]byte{attr}}.der(t)
	r, err = wcce.ParseRequest(in)
	if err != nil || r.Archived != nil {
		t.Errorf("inside the PKCS#10 request it is no archived key: %v", err)
	}
}

func bmp(text string) []byte { return wcce.BMPString(text) }

func TestTemplatesFromAllPlacesMustAgree(t *testing.T) {
	a := &archival{key: testpki.RSA(t, 2048)}
	info := func(dotted string, numbers ...byte) []byte {
		parts := [][]byte{oid(dotted)}
		for _, n := range numbers {
			parts = append(parts, integer(n))
		}
		return extension(wcce.OIDTemplateInfo, sequence(parts...))
	}
	name := func(value []byte) []byte { return extension(wcce.OIDTemplateName, value) }
	utf8 := func(text string) []byte { return tlv(12, []byte(text)) }
	pair := func(n, v string) []byte {
		return wcce.AttributeForTest(wcce.OIDNameValuePair, sequence(bmp(n), bmp(v)))
	}
	for _, c := range []struct {
		name string
		csr  csrParts
		reg  string // registration information
		want wcce.Template
		code hresult.Code
	}{
		{name: "none", want: wcce.Template{Major: -1, Minor: -1}},
		{name: "BMPString", csr: csrParts{extensions: [][]byte{name(bmp("Mail"))}}, want: wcce.Template{Name: "Mail", Major: -1, Minor: -1}},
		{name: "UTF8String", csr: csrParts{extensions: [][]byte{name(utf8("Mail"))}}, want: wcce.Template{Name: "Mail", Major: -1, Minor: -1}},
		{name: "as specified", csr: csrParts{extensions: [][]byte{name(sequence(utf8("Mail")))}}, want: wcce.Template{Name: "Mail", Major: -1, Minor: -1}},
		{name: "OID", csr: csrParts{extensions: [][]byte{info("1.2.3", 100, 7)}}, want: wcce.Template{OID: "1.2.3", Major: 100, Minor: 7}},
		{name: "OID without minor", csr: csrParts{extensions: [][]byte{info("1.2.3", 4)}}, want: wcce.Template{OID: "1.2.3", Major: 4, Minor: -1}},
		{name: "agreeing", csr: csrParts{extensions: [][]byte{name(bmp("Mail"))}, attributes: [][]byte{pair("CertificateTemplate", "mail")}}, reg: "certificatetemplate=MAIL",
			want: wcce.Template{Name: "MAIL", Major: -1, Minor: -1}},
		{name: "extension and pair", csr: csrParts{extensions: [][]byte{name(bmp("Mail"))}, attributes: [][]byte{pair("CertificateTemplate", "User")}}, code: hresult.TemplateConflict},
		{name: "pair and registration information", csr: csrParts{attributes: [][]byte{pair("CertificateTemplate", "User")}}, reg: "CertificateTemplate=Mail", code: hresult.TemplateConflict},
		{name: "two names", csr: csrParts{extensions: [][]byte{name(bmp("Mail")), name(bmp("User"))}}, code: hresult.TemplateConflict},
		{name: "two OIDs", csr: csrParts{extensions: [][]byte{info("1.2.3"), info("1.2.4")}}, code: hresult.InvalidData},
		{name: "negative version", csr: csrParts{extensions: [][]byte{info("1.2.3", 0xff)}}, code: hresult.InvalidData},
	} {
		c.csr.key = a.key
		var controls [][]byte
		if c.reg != "" {
			controls = append(controls, control(2, wcce.OIDCMCRegInfo, octets([]byte(c.reg))))
		}
		r, err := wcce.ParseRequest(message(t, wcce.OIDPKIData, cmc(c.csr.der(t), controls...), nil, wcce.SignerForTest{Key: a.key, KeyID: keyID(t, a.key.Public())}))
		if c.code != 0 {
			wantCode(t, c.name, err, c.code, "")
			continue
		}
		if err != nil || r.Template != c.want {
			t.Errorf("%s: %+v, want %+v: %v", c.name, r, c.want, err)
		}
	}
}

func TestControls(t *testing.T) {
	key := testpki.RSA(t, 2048)
	csr := csrParts{key: key}.der(t)
	parse := func(content []byte) (*wcce.Request, error) {
		return wcce.ParseRequest(message(t, wcce.OIDPKIData, content, nil, wcce.SignerForTest{Key: key, KeyID: keyID(t, key.Public())}))
	}
	r, err := parse(cmc(csr, control(2, wcce.OIDCMCRegInfo, octets([]byte("requestername=LAB%5calice&Note=a%20b&broken&x=1=2")))))
	if err != nil {
		t.Fatal(err)
	}
	if r.Value("RequesterName") != `LAB\alice` || r.Value("note") != "a b" || r.Value("X") != "1=2" || len(r.Values) != 3 {
		t.Errorf("registration information %+v", r.Values)
	}
	exts := sequence(extension("2.5.29.17", sequence(tlv(cbDNS, []byte("host")))))
	r, err = parse(cmc(csr, control(2, wcce.OIDCMCAddExt, sequence(integer(0), sequence(integer(1)), exts))))
	if err != nil || r.CSR.Extension("2.5.29.17") == nil {
		t.Errorf("added extensions: %v", err)
	}
	for name, content := range map[string][]byte{
		"an unknown control":             cmc(csr, control(2, "1.3.6.1.5.5.7.7.5", integer(1))),
		"attributes for another request": cmc(csr, control(2, wcce.OIDCMCAddAttrs, sequence(integer(0), sequence(integer(9)), set()))),
		"extensions for another message": cmc(csr, control(2, wcce.OIDCMCAddExt, sequence(integer(3), sequence(integer(1)), exts))),
		"two requests":                   sequence(sequence(), sequence(tlv(0xa0, integer(1), csr), tlv(0xa0, integer(2), csr)), sequence(), sequence()),
		"no request":                     sequence(sequence(), sequence(), sequence(), sequence()),
		"an enclosed message":            sequence(sequence(), sequence(tlv(0xa0, integer(1), csr)), sequence(sequence()), sequence()),
		"trailing octets":                slices.Concat(cmc(csr), integer(1)),
	} {
		_, err := parse(content)
		wantCode(t, name, err, hresult.InvalidData, "")
	}
}

// cbDNS is the tag of a host name among general names.
const cbDNS = 0x82

func TestContainersThatAreNoRequests(t *testing.T) {
	key := testpki.RSA(t, 2048)
	csr := csrParts{key: key}.der(t)
	signer := wcce.SignerForTest{Key: key, KeyID: keyID(t, key.Public())}
	_, err := wcce.ParseRequest(message(t, wcce.OIDData, csr, nil))
	wantCode(t, "nobody signed", err, hresult.NoSigner, "")
	_, err = wcce.ParseRequest(message(t, wcce.OIDPKIResponse, cmc(csr), nil, signer))
	wantCode(t, "a response", err, hresult.InvalidMsgType, "")
	_, err = wcce.ParseRequest(message(t, wcce.OIDData, []byte("no request"), nil, signer))
	wantCode(t, "no PKCS#10 inside", err, hresult.InvalidData, "")
	_, err = wcce.ParseRequest(nil)
	wantCode(t, "nothing", err, hresult.InvalidData, "0 octets")
	_, err = wcce.ParseRequest(make([]byte, wcce.MaxMessage+1))
	wantCode(t, "too much", err, hresult.InvalidData, "allowed")
	damaged := bytes.Clone(csr)
	damaged[len(damaged)-1] ^= 1
	_, err = wcce.ParseRequest(damaged)
	wantCode(t, "a wrong signature", err, hresult.InvalidData, "does not verify")
}

func FuzzParseRequest(f *testing.F) {
	key := testpki.RSA(f, 1024)
	cert := certFor(f, "old", nil, key.Public(), key)
	signer := wcce.SignerForTest{Key: key, KeyID: keyID(f, key.Public())}
	csr := csrParts{key: key, attributes: [][]byte{wcce.AttributeForTest(wcce.OIDRenewalCert, cert.Raw)}}.der(f)
	archived, err := wcce.NewRequest(wcce.RequestOptions{Key: key, Exchange: cert, Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: bmp("Mail")}}})
	if err != nil {
		f.Fatal(err)
	}
	vectors.Seeds(f)
	f.Add(archived)
	f.Add(csrParts{key: key}.der(f))
	f.Add(message(f, wcce.OIDData, csr, []*x509.Certificate{cert}, wcce.SignerForTest{Key: key, Cert: cert}))
	f.Add(message(f, wcce.OIDPKIData, cmc(csrParts{key: key, null: true}.der(f), control(2, wcce.OIDCMCRegInfo, octets([]byte("a=b")))), nil, signer))
	f.Fuzz(func(t *testing.T, der []byte) {
		before := bytes.Clone(der)
		r, err := wcce.ParseRequest(der)
		if !bytes.Equal(before, der) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if hresult.From(err).Code == hresult.Unexpected {
				t.Fatalf("an error without a code: %v", err)
			}
			return
		}
		if r.CSR == nil || r.Format != wcce.PKCS10 && len(r.Signers) == 0 || r.Renewal != nil && len(r.Signers) == 0 {
			t.Fatalf("accepted without what it needs: %+v", r)
		}
	})
}
