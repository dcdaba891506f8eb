package inspect

import (
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const tagBMP = cbasn1.Tag(30)

// nameText renders a Name as RFC 4514 text, the last part first. What does not decode is shown as hexadecimal.
func nameText(der []byte) string {
	s := cryptobyte.String(der)
	var name cryptobyte.String
	if !s.ReadASN1(&name, cbasn1.SEQUENCE) || !s.Empty() {
		return "#" + hex.EncodeToString(der)
	}
	var parts []string
	for !name.Empty() {
		var set cryptobyte.String
		if !name.ReadASN1(&set, cbasn1.SET) {
			return "#" + hex.EncodeToString(der)
		}
		var values []string
		for !set.Empty() {
			var seq, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			if !set.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&oid) {
				return "#" + hex.EncodeToString(der)
			}
			value = seq
			text, ok := stringText(value)
			if ok {
				text = escape(text)
			} else {
				text = "#" + hex.EncodeToString(value)
			}
			values = append(values, attributeType(oid.String())+"="+text)
		}
		parts = append(parts, strings.Join(values, "+"))
	}
	slices.Reverse(parts)
	return strings.Join(parts, ",")
}

// attributeType is the short name of RFC 4514 3 and the others in common use, or the OID.
func attributeType(oid string) string {
	switch oid {
	case "2.5.4.3":
		return "CN"
	case "2.5.4.4":
		return "SN"
	case "2.5.4.5":
		return "SERIALNUMBER"
	case "2.5.4.6":
		return "C"
	case "2.5.4.7":
		return "L"
	case "2.5.4.8":
		return "ST"
	case "2.5.4.9":
		return "STREET"
	case "2.5.4.10":
		return "O"
	case "2.5.4.11":
		return "OU"
	case "2.5.4.12":
		return "T"
	case "2.5.4.42":
		return "G"
	case "2.5.4.43":
		return "I"
	case "0.9.2342.19200300.100.1.25":
		return "DC"
	case "0.9.2342.19200300.100.1.1":
		return "UID"
	case "1.2.840.113549.1.9.1":
		return "E"
	}
	return oid
}

// escape escapes a value as RFC 4514 2.4 demands.
func escape(s string) string {
	var b strings.Builder
	for i, r := range s {
		if strings.ContainsRune(`,+"\<>;`, r) || i == 0 && (r == '#' || r == ' ') || i == len(s)-1 && r == ' ' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

func decodeString(tag cbasn1.Tag, value []byte) string {
	if tag != tagBMP {
		return cleanText(value)
	}
	var units []uint16
	for i := 0; i+1 < len(value); i += 2 {
		units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
	}
	return cleanText([]byte(string(utf16.Decode(units))))
}

// cleanText makes text safe to print on a terminal: what others sent must not move the cursor.
func cleanText(b []byte) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(string(b), string(unicode.ReplacementChar)))
}

// serialText is the serial number in hexadecimal, as certutil and openssl print it.
func serialText(serial *big.Int) string {
	if serial == nil {
		return ""
	}
	text := serial.Text(16)
	if len(text)%2 == 1 && serial.Sign() >= 0 {
		text = "0" + text
	}
	return text
}
