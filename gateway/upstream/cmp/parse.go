package cmp

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/enrollgate/enrollgate/templates/dn"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// message is what a CA sent. Nothing in it is to be believed before its protection is verified.
type message struct {
	headerAndBody []byte // as they came, one after the other
	algorithm     []byte // AlgorithmIdentifier of the protection; nil: there is none
	keyID         []byte
	transaction   []byte
	senderNonce   []byte
	recipNonce    []byte
	implicit      bool // the CA needs no confirmation

	body       int
	content    []byte // the one element in the body
	protection []byte
	extra      []*x509.Certificate
}

// maxCertificates bounds the certificates of one message that are looked at.
const maxCertificates = 50

// parseMessage reads a PKIMessage in DER (RFC 9810 5.1).
func parseMessage(der []byte) (*message, error) {
	s := cryptobyte.String(der)
	var outer, header, body, headerRaw, bodyRaw, protection, extra cryptobyte.String
	var hasProtection, hasExtra bool
	var tag cbasn1.Tag
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("not exactly one DER sequence")
	}
	start := outer
	if !outer.ReadASN1Element(&headerRaw, cbasn1.SEQUENCE) || !outer.ReadAnyASN1Element(&bodyRaw, &tag) || tag&0xe0 != 0xa0 {
		return nil, errors.New("header or body is malformed")
	}
	m := &message{headerAndBody: start[:len(headerRaw)+len(bodyRaw)], body: int(tag & 0x1f)}
	if !outer.ReadOptionalASN1(&protection, &hasProtection, tagged(0)) || !outer.ReadOptionalASN1(&extra, &hasExtra, tagged(1)) || !outer.Empty() {
		return nil, errors.New("what follows the body is malformed")
	}
	if hasProtection {
		var bits asn1.BitString
		if !protection.ReadASN1BitString(&bits) || !protection.Empty() || bits.BitLength%8 != 0 {
			return nil, errors.New("the protection is malformed")
		}
		m.protection = bits.Bytes
	}
	if hasExtra {
		var err error
		if m.extra, err = readCertificates(extra); err != nil {
			return nil, fmt.Errorf("extraCerts: %w", err)
		}
	}
	headerRaw.ReadASN1(&header, cbasn1.SEQUENCE)
	bodyRaw.ReadASN1(&body, tag)
	var content cryptobyte.String
	if !body.ReadAnyASN1Element(&content, &tag) || !body.Empty() {
		return nil, errors.New("the body is malformed")
	}
	m.content = content
	return m, m.readHeader(header)
}

// readCertificates reads a sequence of certificates. What crypto/x509 cannot read is left out: it is of no help.
func readCertificates(s cryptobyte.String) ([]*x509.Certificate, error) {
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errors.New("malformed")
	}
	var out []*x509.Certificate
	for n := 0; !list.Empty(); n++ {
		var raw cryptobyte.String
		var tag cbasn1.Tag
		if n == maxCertificates || !list.ReadAnyASN1Element(&raw, &tag) {
			return nil, errors.New("malformed, or too many")
		}
		if c, err := x509.ParseCertificate(raw); err == nil {
			out = append(out, c)
		}
	}
	return out, nil
}

// readHeader reads a PKIHeader (RFC 9810 5.1.1).
func (m *message) readHeader(h cryptobyte.String) error {
	var version int
	var name, value cryptobyte.String
	var tag cbasn1.Tag
	if !h.ReadASN1Integer(&version) || version < 2 || version > 3 || !h.ReadAnyASN1(&name, &tag) || !h.ReadAnyASN1(&name, &tag) {
		return errors.New("the header is malformed, or of another version of the protocol")
	}
	last := -1
	for !h.Empty() {
		if !h.ReadAnyASN1(&value, &tag) || tag&0xe0 != 0xa0 || int(tag&0x1f) <= last || tag&0x1f > 8 {
			return errors.New("the header has a malformed field")
		}
		last = int(tag & 0x1f)
		if err := m.headerField(last, value); err != nil {
			return err
		}
	}
	return nil
}

func (m *message) headerField(field int, value cryptobyte.String) error {
	malformed := fmt.Errorf("field %d of the header is malformed", field)
	octets := map[int]*[]byte{2: &m.keyID, 4: &m.transaction, 5: &m.senderNonce, 6: &m.recipNonce}[field]
	switch {
	case field == 1:
		var algorithm cryptobyte.String
		if !value.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !value.Empty() {
			return malformed
		}
		m.algorithm = algorithm
	case octets != nil:
		var v cryptobyte.String
		if !value.ReadASN1(&v, cbasn1.OCTET_STRING) || !value.Empty() || len(v) > 256 {
			return malformed
		}
		*octets = v
	case field == 8:
		var list cryptobyte.String
		if !value.ReadASN1(&list, cbasn1.SEQUENCE) || !value.Empty() {
			return malformed
		}
		for !list.Empty() {
			var info cryptobyte.String
			var oid asn1.ObjectIdentifier
			if !list.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&oid) {
				return malformed
			}
			m.implicit = m.implicit || oid.Equal(oidImplicitConfirm)
		}
	}
	return nil
}

// response is the CA's answer to one request for a certificate (RFC 9810 5.3.4).
type response struct {
	reqID       int64
	status      statusInfo
	certificate *x509.Certificate
	others      []*x509.Certificate // caPubs
}

// parseResponse reads CertRepMessage with exactly one CertResponse.
func parseResponse(der []byte) (*response, error) {
	s := cryptobyte.String(der)
	var outer, publics, list, one, pair, choice, certificate cryptobyte.String
	var hasPublics bool
	r := &response{}
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadOptionalASN1(&publics, &hasPublics, tagged(1)) || !outer.ReadASN1(&list, cbasn1.SEQUENCE) || !outer.Empty() {
		return nil, errors.New("cp is malformed")
	}
	if hasPublics {
		var err error
		if r.others, err = readCertificates(publics); err != nil {
			return nil, fmt.Errorf("caPubs: %w", err)
		}
	}
	if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !list.Empty() || !one.ReadASN1Integer(&r.reqID) {
		return nil, errors.New("cp does not have exactly one answer")
	}
	var err error
	if r.status, err = readStatus(&one); err != nil {
		return nil, err
	}
	if !one.PeekASN1Tag(cbasn1.SEQUENCE) {
		return r, nil
	}
	var tag cbasn1.Tag
	if !one.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadAnyASN1(&choice, &tag) {
		return nil, errors.New("cp: certifiedKeyPair is malformed")
	}
	if tag != tagged(0) {
		return nil, errors.New("the certificate is encrypted, which was not asked for")
	}
	if !choice.ReadASN1Element(&certificate, cbasn1.SEQUENCE) || !choice.Empty() {
		return nil, errors.New("cp: the certificate is malformed")
	}
	if r.certificate, err = x509.ParseCertificate(certificate); err != nil {
		return nil, err
	}
	return r, nil
}

// statusInfo is PKIStatusInfo (RFC 9810 5.2.3).
type statusInfo struct {
	status int64
	text   string
	fail   uint32 // bit n is PKIFailureInfo's n
}

func readStatus(s *cryptobyte.String) (statusInfo, error) {
	var info statusInfo
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1Integer(&info.status) {
		return info, errors.New("PKIStatusInfo is malformed")
	}
	var err error
	if seq.PeekASN1Tag(cbasn1.SEQUENCE) {
		if info.text, err = readFreeText(&seq); err != nil {
			return info, err
		}
	}
	if seq.PeekASN1Tag(cbasn1.BIT_STRING) {
		var bits asn1.BitString
		if !seq.ReadASN1BitString(&bits) {
			return info, errors.New("PKIFailureInfo is malformed")
		}
		for i := range min(bits.BitLength, 32) {
			info.fail |= uint32(bits.At(i)) << i //nolint:gosec // 0 or 1
		}
	}
	if !seq.Empty() {
		return info, errors.New("PKIStatusInfo is malformed")
	}
	return info, nil
}

// readFreeText reads PKIFreeText and makes one line of it.
func readFreeText(s *cryptobyte.String) (string, error) {
	var list, text cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) {
		return "", errors.New("PKIFreeText is malformed")
	}
	var parts []string
	for !list.Empty() {
		if !list.ReadASN1(&text, cbasn1.UTF8String) {
			return "", errors.New("PKIFreeText is malformed")
		}
		parts = append(parts, plain(string(text)))
	}
	return strings.Join(parts, "; "), nil
}

// plain makes the CA's words fit for a log: without control characters, and not long.
func plain(text string) string {
	text = dn.Clean(text)
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return strings.TrimSpace(text)
}

// parseError reads ErrorMsgContent (RFC 9810 5.3.21).
func parseError(der []byte) (statusInfo, error) {
	s := cryptobyte.String(der)
	var seq cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return statusInfo{}, errors.New("error is malformed")
	}
	info, err := readStatus(&seq)
	if err != nil {
		return info, err
	}
	if seq.PeekASN1Tag(cbasn1.INTEGER) {
		seq.SkipASN1(cbasn1.INTEGER)
	}
	if seq.PeekASN1Tag(cbasn1.SEQUENCE) {
		details, err := readFreeText(&seq)
		if err != nil {
			return info, err
		}
		info.text = strings.Trim(info.text+"; "+details, "; ")
	}
	if !seq.Empty() {
		return info, errors.New("error is malformed")
	}
	return info, nil
}

// parsePollResponse reads PollRepContent with one answer: it is still to be waited for.
func parsePollResponse(der []byte) (reqID int64, reason string, err error) {
	s := cryptobyte.String(der)
	var list, one cryptobyte.String
	var after int64
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !list.ReadASN1(&one, cbasn1.SEQUENCE) || !list.Empty() || !one.ReadASN1Integer(&reqID) || !one.ReadASN1Integer(&after) {
		return 0, "", errors.New("pollRep is malformed")
	}
	if !one.Empty() {
		reason, err = readFreeText(&one)
	}
	return reqID, reason, err
}

// parseRevocation reads the first status of RevRepContent (RFC 9810 5.3.10).
func parseRevocation(der []byte) (statusInfo, error) {
	s := cryptobyte.String(der)
	var seq, list cryptobyte.String
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1(&list, cbasn1.SEQUENCE) {
		return statusInfo{}, errors.New("rp is malformed")
	}
	return readStatus(&list)
}
