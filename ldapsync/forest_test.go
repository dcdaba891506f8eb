package ldapsync

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

const (
	rootDomain security.SID = "S-1-5-21-1-2-3"
	kidDomain  security.SID = "S-1-5-21-4-5-6"
)

// familyDC is a controller of one of the two domains of a forest, with an account.
func familyDC(t *testing.T, host, dn string, domain security.SID, account string) *fakeDC {
	t.Helper()
	f := newFakeDC(t, host)
	entry := ldap.NewEntry("CN="+account+",CN=Users,"+dn, map[string][]string{"objectClass": {"user"}, "cn": {account}, "sAMAccountName": {account},
		"objectSid": {string(security.SID(string(domain) + "-1000").Bytes())}, "objectGUID": {strings.Repeat("g", 16)}, "userAccountControl": {"512"}})
	f.set(func(f *fakeDC) {
		f.answer = func(base string, attributes []string) ([]*ldap.Entry, string) {
			switch {
			case base == "":
				return []*ldap.Entry{ldap.NewEntry("", map[string][]string{"dnsHostName": {host}, "configurationNamingContext": {fakeConfig},
					"rootDomainNamingContext": {"DC=fake,DC=test"}, "defaultNamingContext": {dn}, "highestCommittedUSN": {"1000"}})}, ""
			case base == "CN=Partitions,"+fakeConfig:
				return []*ldap.Entry{
					ldap.NewEntry("CN=FAKE,"+base, map[string][]string{"nCName": {"DC=fake,DC=test"}, "dnsRoot": {"fake.test"}, "nETBIOSName": {"FAKE"}}),
					ldap.NewEntry("CN=KID,"+base, map[string][]string{"nCName": {"DC=kid,DC=fake,DC=test"}, "dnsRoot": {"kid.fake.test"}, "nETBIOSName": {"KID"}})}, ""
			case base == dn && slices.Equal(attributes, []string{"objectSid"}):
				return []*ldap.Entry{ldap.NewEntry(dn, map[string][]string{"objectSid": {string(domain.Bytes())}})}, ""
			case base == dn:
				return []*ldap.Entry{entry}, ""
			}
			return nil, ""
		}
	})
	return f
}

// A child domain is found in DNS by what the forest says of its domains, and its accounts are read there.
func TestAccountsOfAChildDomainAreReadInIt(t *testing.T) {
	root := familyDC(t, "root.fake.test", "DC=fake,DC=test", rootDomain, "anna")
	kid := familyDC(t, "dc.kid.fake.test", "DC=kid,DC=fake,DC=test", kidDomain, "bert")
	config := quick()
	config.Domain = "fake.test"
	own := fakeForest(t, config, nil, root, kid)
	own.resolver = records{"_ldap._tcp.dc._msdcs.fake.test": {{Target: "root.fake.test.", Port: 389}},
		"_ldap._tcp.dc._msdcs.kid.fake.test": {{Target: "dc.kid.fake.test.", Port: 389}}}
	f := &Forest{Directory: own}
	t.Cleanup(f.Close)
	if n := len(f.all()); n != 1 {
		t.Errorf("%d domains before the directory was read", n)
	}
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := f.all(); len(all) != 2 || len(f.all()) != 2 || all[1].config.Domain != "kid.fake.test" {
		t.Fatalf("domains: %d", len(all))
	}
	f.others[0].connectTo = own.connectTo

	for sid, want := range map[security.SID]string{rootDomain + "-1000": "CN=anna,CN=Users,DC=fake,DC=test", kidDomain + "-1000": "CN=bert,CN=Users,DC=kid,DC=fake,DC=test"} {
		s, err := f.Subject(t.Context(), sid)
		if err != nil || s.DN != want || !strings.HasSuffix(want, s.Domain.DN) {
			t.Errorf("%s: %q in %q, %v", sid, s.DN, s.Domain.DN, err)
		}
	}
	for _, name := range []string{`KID\bert`, `kid.fake.test\bert`, "CN=bert,CN=Users,DC=kid,DC=fake,DC=test", string(kidDomain) + "-1000"} {
		d, err := f.named(t.Context(), name)
		if err != nil || d != f.others[0] {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := f.Subject(t.Context(), "S-1-5-21-7-8-9-1000")
	if e := hresult.From(err); e.Code != hresult.NoSuchUser || !strings.Contains(e.Fix, "directory.domains") {
		t.Errorf("a SID of another domain: %v", err)
	}
	// While a domain cannot be asked for the first time, nobody knows whose a SID is.
	kid.die()
	f.others[0].identity.Store(nil)
	_, err = f.Subject(t.Context(), "S-1-5-21-7-8-9-1000")
	if e := hresult.From(err); e.Code != hresult.ServerUnavailable {
		t.Errorf("with a domain that gives no answer: %v", err)
	}
	if _, err := f.Subject(t.Context(), rootDomain+"-1000"); err != nil {
		t.Errorf("the own domain does not depend on another: %v", err)
	}
}
