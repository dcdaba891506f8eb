package ldapsync

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

const (
	pingTime = time.Second // for one controller's answer to an LDAP ping
	maxPings = 3           // controllers that are asked

	netlogonResponse = 23 // LOGON_SAM_LOGON_RESPONSE_EX ([MS-ADTS] 6.3.1.3)
	netlogonHeader   = 24 // opcode, filler, flags and the domain's GUID ([MS-ADTS] 6.3.1.9)
)

// siteOf asks controllers which site this machine belongs to, by an LDAP ping over UDP ([MS-ADTS] 6.3.3). The answer is
// proven by nothing, and is used for nothing but the order in which controllers are tried.
func (d *Directory) siteOf(ctx context.Context, hosts []string) (string, error) {
	var failures []error
	for _, host := range hosts[:min(len(hosts), maxPings)] {
		site, err := d.ping(ctx, host)
		if err == nil {
			return site, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", host, err))
	}
	return "", errors.Join(failures...)
}

// ping sends one LDAP ping.
func (d *Directory) ping(ctx context.Context, host string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	conn, err := d.dial(ctx, "udp", net.JoinHostPort(host, "389"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	request, err := pingRequest(d.config.Domain)
	if err == nil {
		err = errors.Join(conn.SetDeadline(deadline), errorOf(conn.Write(request)))
	}
	if err != nil {
		return "", err
	}
	answer := make([]byte, 8<<10)
	n, err := conn.Read(answer)
	if err != nil {
		return "", err
	}
	return siteIn(answer[:n])
}

func errorOf(_ int, err error) error { return err }

// pingRequest is a search of the root DSE for netlogon; NtVer 6 asks for the extended answer.
func pingRequest(domain string) ([]byte, error) {
	filter, err := ldap.CompileFilter("(&(DnsDomain=" + ldap.EscapeFilter(domain) + `)(NtVer=\06\00\00\00))`)
	if err != nil {
		return nil, err
	}
	search := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchRequest, nil, "")
	search.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	search.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, ldap.ScopeBaseObject, ""))
	search.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, ldap.NeverDerefAliases, ""))
	search.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 0, ""))
	search.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 0, ""))
	search.AppendChild(ber.NewBoolean(ber.ClassUniversal, ber.TypePrimitive, ber.TagBoolean, false, ""))
	search.AppendChild(filter)
	names := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	names.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "netlogon", ""))
	search.AppendChild(names)
	message := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	message.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 1, ""))
	message.AppendChild(search)
	return message.Bytes(), nil
}

// siteIn finds the client's site in the answer to a ping.
func siteIn(answer []byte) (string, error) {
	packet, err := ber.DecodePacketErr(answer)
	if err != nil {
		return "", err
	}
	// LDAPMessage: ID, [APPLICATION 4] { name, { { "netlogon", { value } } } }
	p := packet
	for _, i := range []int{1, 1, 0, 1, 0} {
		if len(p.Children) <= i {
			return "", errors.New("ping: no answer for this domain")
		}
		p = p.Children[i]
	}
	b := p.ByteValue
	if len(b) < netlogonHeader || binary.LittleEndian.Uint16(b) != netlogonResponse {
		return "", errors.New("ping: an answer of another kind")
	}
	name, at := "", netlogonHeader
	for range 8 { // forest, domain, host, NetBIOS domain, NetBIOS host, user, the controller's site, the client's site
		if name, at, err = compressedName(b, at); err != nil {
			return "", err
		}
	}
	if name == "" {
		return "", errors.New("ping: no site has a subnet with this machine's address")
	}
	return name, nil
}

// compressedName reads a name in the form of RFC 1035 4.1.4, and where the next begins.
func compressedName(b []byte, at int) (name string, next int, err error) {
	var labels []string
	for jumps := 0; ; {
		if at >= len(b) {
			return "", 0, errors.New("ping: a name is cut")
		}
		size := int(b[at])
		switch {
		case size == 0:
			if jumps == 0 {
				next = at + 1
			}
			return strings.Join(labels, "."), next, nil
		case size >= 0xc0:
			if at+1 >= len(b) || jumps == 16 {
				return "", 0, errors.New("ping: a name that does not end")
			}
			if jumps == 0 {
				next = at + 2
			}
			jumps++
			at = (size&0x3f)<<8 | int(b[at+1])
		case size > 63 || at+1+size > len(b) || len(labels) == 128:
			return "", 0, errors.New("ping: a damaged name")
		default:
			labels = append(labels, string(b[at+1:at+1+size]))
			at += 1 + size
		}
	}
}
