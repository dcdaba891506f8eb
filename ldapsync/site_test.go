package ldapsync

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// pingAnswer frames a netlogon value as a controller does.
func pingAnswer(value []byte) []byte {
	return fakeReply(1, entryPacket(&ldap.Entry{Attributes: []*ldap.EntryAttribute{{Name: "netlogon", ByteValues: [][]byte{value}}}}))
}

func TestTheSiteIsReadFromAControllersAnswerToAPing(t *testing.T) {
	// As Samba sent it: the second site name is a pointer to the first.
	samba, err := base64.StdEncoding.DecodeString("FwAAAL0RAACGzH6q1wB8T5AvtEFdCA23A2xhYgR0ZXN0AMAYA2RjMcAYA0xBQgADREMxAAAXRGVmYXVsdC1GaXJzdC1TaXRlLU5hbWUAwDUFAAAA/////w==")
	if err != nil {
		t.Fatal(err)
	}
	if site, err := siteIn(pingAnswer(samba)); err != nil || site != "Default-First-Site-Name" {
		t.Errorf("%q, %v", site, err)
	}
	elsewhere := append(bytes.Clone(samba[:len(samba)-10]), "\x05Paris\x00\x05\x00\x00\x00"...)
	if site, err := siteIn(pingAnswer(elsewhere)); err != nil || site != "Paris" {
		t.Errorf("%q, %v", site, err)
	}
	unknown := append(bytes.Clone(samba[:len(samba)-10]), 0, 5, 0, 0, 0)
	if _, err := siteIn(pingAnswer(unknown)); err == nil || !strings.Contains(err.Error(), "subnet") {
		t.Errorf("no site: %v", err)
	}
	loop := bytes.Clone(samba)
	copy(loop[netlogonHeader:], "\xc0\x18")
	other := bytes.Clone(samba)
	other[0] = 19
	for name, answer := range map[string][]byte{"nothing": nil, "rubbish": []byte("rubbish"), "a name that points to itself": pingAnswer(loop),
		"another kind": pingAnswer(other), "short": pingAnswer(samba[:10]),
		"no entry": fakeReply(1, ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultDone, nil, ""))} {
		if site, err := siteIn(answer); err == nil {
			t.Errorf("%s: %q", name, site)
		}
	}
	for i := range len(samba) - 9 {
		if site, err := siteIn(pingAnswer(samba[:i])); err == nil {
			t.Errorf("cut to %d octets: %q", i, site)
		}
	}
}

func TestARealControllerSaysWhichSiteThisMachineIsIn(t *testing.T) {
	config := sealedKerberos()
	config.Servers, config.Domain = nil, "lab.test"
	log := &captured{}
	d := open(t, config)
	d.log = log.logger()
	refresh(t, d)
	if d.ownSite != "Default-First-Site-Name" || log.count("has no domain controllers in DNS") > 0 || d.Status().Server != "ldap://dc1.lab.test:389" {
		t.Errorf("site %q, log:\n%s", d.ownSite, log)
	}
	config.Site = "Default-First-Site-Name"
	if s := refresh(t, open(t, config)); s.Controller != "dc1.lab.test" {
		t.Errorf("controller %q", s.Controller)
	}
}

func FuzzSiteIn(f *testing.F) {
	f.Add(pingAnswer([]byte("\x17")))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = siteIn(b) })
}
