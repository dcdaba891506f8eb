package adcs

import (
	"crypto/x509"
	"encoding/asn1"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	sanOID = asn1.ObjectIdentifier{2, 5, 29, 17}
	upnOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
	ntOID  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2}    // szOID_NTDS_CA_SECURITY_EXT
	sidOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2, 1} // szOID_NTDS_OBJECTSID
)

// otherNames are the otherName values with a type-id in a GeneralNames (RFC 5280 4.2.1.6).
func otherNames(der []byte, id asn1.ObjectIdentifier) (out []cryptobyte.String) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil
	}
	other := cbasn1.Tag(0).ContextSpecific().Constructed()
	for !list.Empty() {
		var name, value cryptobyte.String
		var tag cbasn1.Tag
		var found asn1.ObjectIdentifier
		if !list.ReadAnyASN1(&name, &tag) {
			return nil
		}
		if tag == other && name.ReadASN1ObjectIdentifier(&found) && name.ReadASN1(&value, other) && name.Empty() && found.Equal(id) {
			out = append(out, value)
		}
	}
	return out
}

// SIDOf is the SID in a certificate's security extension ([MS-WCCE] 2.2.2.7.7.4); "" where it has none.
func SIDOf(cert *x509.Certificate) string {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(ntOID) {
			continue
		}
		for _, value := range otherNames(e.Value, sidOID) {
			var text cryptobyte.String
			if value.ReadASN1(&text, cbasn1.OCTET_STRING) && value.Empty() && strings.HasPrefix(string(text), "S-1-") {
				return string(text)
			}
		}
	}
	return ""
}

// UPNsOf are the user principal names among a certificate's alternative names ([MS-WCCE] 2.2.2.7.7.3).
func UPNsOf(cert *x509.Certificate) (out []string) {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(sanOID) {
			continue
		}
		for _, value := range otherNames(e.Value, upnOID) {
			var text cryptobyte.String
			if value.ReadASN1(&text, cbasn1.UTF8String) && value.Empty() {
				out = append(out, string(text))
			}
		}
	}
	return out
}
