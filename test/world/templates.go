package world

import (
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// CopyTemplate copies a template under another name, with other values, and offers it, as an administrator would. It ends
// with the test. Names in set are in lower case, and have the OID among them.
func (w *World) CopyTemplate(t testing.TB, source, name string, set map[string]string) {
	t.Helper()
	conn := Admin(t)
	base := "CN=Public Key Services,CN=Services," + Env("LAB_CONFIG_DN")
	res, err := conn.Search(ldap.NewSearchRequest("CN="+source+",CN=Certificate Templates,"+base, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"*", "nTSecurityDescriptor"}, []ldap.Control{&ldap.ControlMicrosoftSDFlags{ControlValue: 4}}))
	if err != nil {
		t.Fatal(err)
	}
	dn := "CN=" + name + ",CN=Certificate Templates," + base
	add := ldap.NewAddRequest(dn, nil)
	for _, a := range res.Entries[0].Attributes {
		low := strings.ToLower(a.Name)
		switch {
		case set[low] != "":
			add.Attribute(a.Name, []string{set[low]})
		case low == "objectclass":
			add.Attribute(a.Name, []string{"pKICertificateTemplate"})
		case strings.HasPrefix(low, "pki"), strings.HasPrefix(low, "mspki"), low == "flags", low == "ntsecuritydescriptor":
			add.Attribute(a.Name, a.Values)
		}
	}
	if err := conn.Add(add); err != nil {
		t.Fatal(err)
	}
	offer := ldap.NewModifyRequest("CN="+CAName+",CN=Enrollment Services,"+base, nil)
	offer.Add("certificateTemplates", []string{name})
	if err := conn.Modify(offer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		undo := ldap.NewModifyRequest(offer.DN, nil)
		undo.Delete("certificateTemplates", []string{name})
		if err := conn.Modify(undo); err != nil {
			t.Error(err)
		}
		if err := conn.Del(ldap.NewDelRequest(dn, nil)); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s := w.Directory.Snapshot()
		if s.TemplateByOID(set["mspki-cert-template-oid"]) != nil && s.Service(CAName).Offers(name) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the template %s is not in force within 10 s", name)
		}
	}
}
