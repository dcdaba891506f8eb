package ldapsync

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

func TestAttributesInPartsAreReadToTheEnd(t *testing.T) {
	const all = 3700
	part := func(from, most int) (string, []string) {
		to, label := min(from+most, all), ""
		if label = fmt.Sprint(to - 1); to == all {
			label = "*"
		}
		var values []string
		for i := from; i < to; i++ {
			values = append(values, fmt.Sprint("T", i))
		}
		return fmt.Sprintf("certificateTemplates;range=%d-%s", from, label), values
	}
	name, values := part(0, 1500)
	service := ldap.NewEntry("CN=CA,"+pkiBase(fakeConfig), map[string][]string{"objectClass": {"pKIEnrollmentService"}, "cn": {"CA"},
		"certificateTemplates": {}, name: values, "nTSecurityDescriptor": {"x"}})
	f := newFakeDC(t, "a.fake.test")
	f.objects = []*ldap.Entry{service}
	broken := false
	f.answer = func(base string, attributes []string) ([]*ldap.Entry, string) {
		var from int
		if n, _ := fmt.Sscanf(attributes[0], "certificateTemplates;range=%d-*", &from); n == 0 || base != service.DN {
			return nil, ""
		}
		if broken {
			from++
		}
		name, values := part(from, 1500)
		return []*ldap.Entry{ldap.NewEntry(base, map[string][]string{name: values})}, ""
	}
	d := fakeForest(t, quick(), nil, f)
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := d.seen.reading.objects[0].attributes
	list := got.Strings("certificateTemplates")
	if len(list) != all || list[0] != "T0" || list[1500] != "T1500" || list[all-1] != "T3699" || len(got) != 4 {
		t.Errorf("%d values in %d attributes", len(list), len(got))
	}
	f.set(func(*fakeDC) { broken = true })
	if err := d.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "no values from number 1500 on") {
		t.Errorf("a gap: %v", err)
	}
}

func TestRangesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, name := range []string{"member;range=a-b", "member;range=5", "member;range=5-3", "member;range=-1-3", "member;range=0-", "member;Range=x-*", "member;range=3-9"} {
		e := ldap.NewEntry("CN=x", map[string][]string{name: {"v"}})
		if err := (&session{}).completeRanges(e); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, name := range []string{"member", "cACertificate;binary", "cn;lang-de"} {
		e := ldap.NewEntry("CN=x", map[string][]string{name: {"v"}})
		if err := (&session{}).completeRanges(e); err != nil || e.Attributes[0].Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAccountInAnotherPartOfTheForestIsSaidToBeThere(t *testing.T) {
	f := newFakeDC(t, "a.fake.test")
	f.answer = func(base string, _ []string) ([]*ldap.Entry, string) {
		if base == "CN=Eve,DC=child,DC=fake,DC=test" {
			return nil, "ldap://child.fake.test/" + base
		}
		return nil, ""
	}
	d := fakeForest(t, quick(), nil, f)
	_, err := d.SubjectByName(t.Context(), "CN=Eve,DC=child,DC=fake,DC=test")
	if e := hresult.From(err); e.Code != hresult.NoSuchUser || !strings.Contains(err.Error(), "ldap://child.fake.test/") {
		t.Errorf("%v", err)
	}
	f.set(func(f *fakeDC) {
		f.answer = func(base string, _ []string) ([]*ldap.Entry, string) {
			if strings.HasPrefix(base, "CN=Partitions") {
				return nil, "ldap://other.test/"
			}
			return nil, ""
		}
	})
	if err := d.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), `it is at "ldap://other.test/", which is not asked`) {
		t.Errorf("%v", err)
	}
}
