package inspect

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates/dn"
)

// Where an attribute stood.
const (
	inPKCS10   = "pkcs10"
	inControl  = "cmc control"
	inSigned   = "signed"
	inUnsigned = "unsigned"
)

// Roles of signers.
const (
	roleSubject    = "subject key"
	roleRenewed    = "renewed certificate"
	roleAdditional = "additional"
	roleCA         = "CA"
)

// describeSigned tells requests, responses and recovery blobs apart by the content of the SignedData.
func (r *Report) describeSigned(der []byte, key crypto.Decrypter) error {
	sd, err := wcce.ParseSignedData(der)
	if err != nil {
		return err
	}
	for _, si := range sd.Signers {
		r.addAttributes(si.SignedAttrs, inSigned)
		r.addAttributes(si.UnsignedAttrs, inUnsigned)
	}
	switch {
	case sd.ContentType == wcce.OIDPKIData:
		r.Kind = KindCMC
		return r.describeCMC(der, sd, key)
	case sd.ContentType == wcce.OIDPKIResponse:
		r.Kind = KindResponse
		return r.describeResponse(der, sd)
	case sd.ContentType != wcce.OIDData:
		return fmt.Errorf("SignedData with content of type %s, which is no request, response or recovery blob", named(sd.ContentType))
	case len(sd.Content) == 0:
		return r.describeCertsOnly(sd)
	}
	if kind, _, err := wcce.ParseContentInfo(sd.Content); err == nil && kind == wcce.OIDEnvelopedData {
		r.Kind = KindRecovery
		return r.describeRecovery(sd, key)
	}
	csr, err := wcce.ParseCSR(sd.Content)
	if err != nil {
		return fmt.Errorf("SignedData whose content is neither EnvelopedData nor a request (%w)", err)
	}
	r.Kind = KindPKCS7
	r.describeCSR(csr, true)
	r.addSigners(sd, csr)
	r.Chain = outlines(sd.Certificates)
	r.judgeRequest(der)
	return nil
}

// describeCSR fills in what a PKCS#10 request says. Inside CMS its signature may be a bare hash.
func (r *Report) describeCSR(csr *wcce.CSR, inCMS bool) {
	r.Subject = dn.Show(csr.RawSubject)
	r.PublicKey = describePublicKey(csr.PublicKey)
	r.SignatureAlgorithm = named(csr.Algorithm)
	r.Possession = &Possession{}
	err := csr.Verify(inCMS)
	r.NullSignature = csr.NullSignature
	switch {
	case err != nil:
		r.Possession.Error = err.Error()
	case csr.NullSignature:
		r.Possession.Error = "a bare hash stands in place of the signature; possession is proven by the outer signature alone"
	default:
		r.Possession.Verified = true
	}
	if !inCMS {
		r.Signers = append(r.Signers, Signer{Role: roleSubject, KeyID: hex.EncodeToString(csr.KeyID),
			Digest: digestOfSignature(csr.Algorithm), Verified: r.Possession.Verified, Error: r.Possession.Error})
	}
	r.addAttributes(csr.Attributes, inPKCS10)
	for _, e := range csr.Extensions {
		r.addExtension(e.OID, e.Critical, e.Value)
	}
	for _, a := range csr.Attributes {
		if a.OID == wcce.OIDRenewalCert && len(a.Values) == 1 {
			if cert, err := x509.ParseCertificate(a.Values[0]); err == nil {
				r.Renewal = outline(cert)
			}
		}
	}
}

// judgeRequest adds what a server says to the request as a whole.
func (r *Report) judgeRequest(der []byte) {
	req, err := wcce.ParseRequest(der)
	if err == nil {
		err = req.ArchivedErr
	}
	if err != nil {
		r.Problem = err.Error()
	}
}

func (r *Report) describeCMC(der []byte, sd *wcce.SignedData, key crypto.Decrypter) error {
	body, err := readBody(sd.Content, true)
	if err != nil {
		return fmt.Errorf("CMC request: %w", err)
	}
	csr, err := wcce.ParseCSR(body.request)
	if err != nil {
		return fmt.Errorf("CMC request: %w", err)
	}
	r.describeCSR(csr, true)
	r.addControls(body.controls)
	r.addSigners(sd, csr)
	r.Chain = outlines(sd.Certificates)
	var enclosed []byte
	for _, si := range sd.Signers {
		if v := firstValue(si.UnsignedAttrs, wcce.OIDArchivedKey); v != nil && enclosed == nil {
			enclosed = v
		}
	}
	hash := octetsOf(firstValue(body.attributes(), wcce.OIDArchivedHash))
	if enclosed != nil {
		r.describeArchived(enclosed, key, csr.PublicKey)
		valid := hash != nil && hashMatches(hash, enclosed)
		r.ArchivedKey.HashValid = &valid
	}
	r.judgeRequest(der)
	return nil
}

// hashMatches compares with the hash of the whole attribute value; the length tells the algorithm, as with servers
// ([MS-WCCE] 3.2.2.6.2.1.2.2).
func hashMatches(hash, value []byte) bool {
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if h.Size() == len(hash) {
			w := h.New()
			w.Write(value)
			return bytes.Equal(w.Sum(nil), hash)
		}
	}
	return false
}

// addSigners checks each signature by itself, so that one bad one does not hide the others. csr is nil where the message
// is no request.
func (r *Report) addSigners(sd *wcce.SignedData, csr *wcce.CSR) {
	for i := range sd.Signers {
		si := &sd.Signers[i]
		out := Signer{Digest: named(si.Digest), Role: roleCA}
		if si.KeyID != nil {
			out.KeyID = hex.EncodeToString(si.KeyID)
		} else {
			out.Issuer, out.Serial = dn.Show(si.Issuer), serialText(si.Serial)
		}
		key, role, err := signerKey(sd, si, csr)
		if csr != nil {
			out.Role = role
			if role == roleAdditional && r.isRenewed(si) {
				out.Role = roleRenewed
			}
		}
		if err == nil {
			err = sd.Verify(si, key)
		}
		if err != nil {
			out.Error = err.Error()
		}
		out.Verified = err == nil
		r.Signers = append(r.Signers, out)
	}
}

func (r *Report) isRenewed(si *wcce.SignerInfo) bool {
	return r.Renewal != nil && si.Serial != nil && serialText(si.Serial) == r.Renewal.Serial && dn.Show(si.Issuer) == r.Renewal.Issuer
}

// signerKey finds the key that a signature must verify with, and the role that its holder has.
func signerKey(sd *wcce.SignedData, si *wcce.SignerInfo, csr *wcce.CSR) (crypto.PublicKey, string, error) {
	if csr != nil && si.Algorithm == wcce.OIDNoSignature {
		return nil, roleSubject, errors.New("a bare hash stands in place of the signature (RFC 2797 3.3.3.1)")
	}
	if csr != nil && si.KeyID != nil && (bytes.Equal(si.KeyID, csr.KeyID) || bytes.Equal(si.KeyID, octetsOf(csr.Extension(wcce.OIDSKI)))) {
		return csr.PublicKey, roleSubject, nil
	}
	for _, c := range sd.Certificates {
		if si.KeyID != nil && bytes.Equal(si.KeyID, c.SubjectKeyId) ||
			si.Serial != nil && bytes.Equal(si.Issuer, c.RawIssuer) && si.Serial.Cmp(c.SerialNumber) == 0 {
			return c.PublicKey, roleAdditional, nil
		}
	}
	return nil, roleAdditional, errors.New("the signer's certificate is not enclosed")
}

// describeRecovery reads what certutil -getkey writes ([MS-CSRA] 3.1.4.2.9): a CA's signature around a sealed key.
func (r *Report) describeRecovery(sd *wcce.SignedData, key crypto.Decrypter) error {
	r.addSigners(sd, nil)
	var archived *x509.Certificate
	for _, si := range sd.Signers {
		if hash := octetsOf(firstValue(si.SignedAttrs, wcce.OIDArchivedCert)); hash != nil {
			archived = certificateWithHash(sd.Certificates, hash)
		}
	}
	if archived == nil {
		r.Problem = "the certificate whose key is archived is not enclosed"
		r.Chain = outlines(sd.Certificates)
		r.describeArchived(sd.Content, key, nil)
		return nil
	}
	r.setCertificate(archived, sd.Certificates)
	r.describeArchived(sd.Content, key, archived.PublicKey)
	return nil
}

func certificateWithHash(certs []*x509.Certificate, hash []byte) *x509.Certificate {
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool {
		h := sha1.Sum(c.Raw)
		return bytes.Equal(h[:], hash)
	})
	if i < 0 {
		return nil
	}
	return certs[i]
}

// setCertificate makes cert what the report is about, and the others its chain.
func (r *Report) setCertificate(cert *x509.Certificate, all []*x509.Certificate) {
	r.Certificate = outline(cert)
	r.Subject = r.Certificate.Subject
	r.PublicKey = describePublicKey(cert.PublicKey)
	r.SignatureAlgorithm = cert.SignatureAlgorithm.String()
	for _, e := range cert.Extensions {
		r.addExtension(e.Id.String(), e.Critical, e.Value)
	}
	r.Chain = outlines(slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool { return c.Equal(cert) }))
}

// describeArchived opens a sealed key, if it can, and compares it with the public key that it should belong to.
func (r *Report) describeArchived(sealed []byte, key crypto.Decrypter, public crypto.PublicKey) {
	a := &r.ArchivedKey
	a.Present = true
	e, err := wcce.ParseEnveloped(sealed)
	if err != nil {
		a.Error = err.Error()
		return
	}
	a.Cipher = named(e.Cipher)
	for i := range e.Recipients {
		a.Recipients = append(a.Recipients, describeRecipient(&e.Recipients[i]))
	}
	if key == nil {
		return
	}
	blob, err := open(e, key)
	if err != nil {
		a.Error = err.Error()
		return
	}
	defer blob.Wipe()
	a.Opened, a.Algorithm, a.Bits, a.Form = true, blob.Algorithm, blob.Bits, blob.Form
	if public != nil {
		matches := blob.Matches(public)
		a.MatchesRequest = &matches
	}
}

// open tries the key on each recipient: the certificate that would tell which one is ours is not at hand. A wrong key
// gives random octets, which are never a consistent key blob.
func open(e *wcce.Enveloped, key crypto.Decrypter) (*wcce.KeyBlob, error) {
	if len(e.Recipients) == 0 {
		return nil, errors.New("the archived key has no recipient")
	}
	var last error
	for i := range e.Recipients {
		plain, err := e.Open(&e.Recipients[i], key)
		if err != nil {
			last = err
			continue
		}
		blob, err := wcce.ParseKeyBlob(plain)
		wcce.Wipe(plain)
		if err == nil {
			return blob, nil
		}
		last = errors.New("what comes out is not a private key")
	}
	return nil, fmt.Errorf("this key does not open the archived key: it is not the recipient's, or the message is damaged (%w)", last)
}

func describeRecipient(r *wcce.Recipient) Recipient {
	out := Recipient{Transport: named(r.Transport)}
	if r.KeyID != nil {
		out.KeyID = hex.EncodeToString(r.KeyID)
	} else {
		out.Issuer, out.Serial = dn.Show(r.Issuer), serialText(r.Serial)
	}
	return out
}
