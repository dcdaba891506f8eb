package lint

import (
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// rule looks at the extensions of a certificate, by object identifier; it returns what is wrong, or "".
type rule struct {
	name     string
	citation string
	check    func(map[string]templates.Extension) string
}

const (
	oidSAN           = "2.5.29.17"
	oidEKU           = "2.5.29.37"
	oidSID           = "1.3.6.1.4.1.311.25.2"
	oidSIDName       = "1.3.6.1.4.1.311.25.2.1"
	oidUPN           = "1.3.6.1.4.1.311.20.2.3"
	oidDirectoryGUID = "1.3.6.1.4.1.311.25.1"
	oidSMIMECaps     = "1.2.840.113549.1.9.15"
)

// microsoft are the rules that no public linter has. What they guard is read by Windows: a malformed one makes a client
// discard the certificate, or a domain controller refuse the logon, without saying why.
var microsoft = []rule{
	{"ms_template_not_named", "[MS-WCCE] 2.2.2.7.7.1, 2.2.2.7.7.2", templateNamed},
	{"ms_template_name_malformed", "[MS-WCCE] 2.2.2.7.7.1", templateName},
	{"ms_template_information_malformed", "[MS-WCCE] 2.2.2.7.7.2", templateInformation},
	{"ms_application_policies_malformed", "[MS-WCCE] 2.2.2.7.7.3", applicationPolicies},
	{"ms_application_policies_differ_from_eku", "[MS-CRTD] 2.11, 2.23", policiesMatchEKU},
	{"ms_security_extension_malformed", "[MS-WCCE] 2.2.2.7.7.4", securityExtension},
	{"ms_private_extension_critical", "RFC 5280: 4.2", privateNotCritical},
	{"ms_upn_malformed", "RFC 4556: 3.2.2; [MS-WCCE] 3.2.2.6.2.1.4.5.9", upn},
	{"ms_directory_guid_malformed", "[MS-WCCE] 3.2.2.6.2.1.4.5.9", directoryGUID},
	{"ms_smime_capabilities_malformed", "RFC 8551: 2.5.2", smimeCapabilities},
}

func templateNamed(x map[string]templates.Extension) string {
	_, name := x[wcce.OIDTemplateName]
	_, info := x[wcce.OIDTemplateInfo]
	if !name && !info {
		return "the certificate does not name its template: Windows would not renew it"
	}
	return ""
}

func templateName(x map[string]templates.Extension) string {
	e, ok := x[wcce.OIDTemplateName]
	if !ok {
		return ""
	}
	s := cryptobyte.String(e.Value)
	var text cryptobyte.String
	if !s.ReadASN1(&text, cbasn1.Tag(30)) || !s.Empty() || len(text) == 0 || len(text)%2 != 0 {
		return "the template name is not a BMPString with text"
	}
	return ""
}

func templateInformation(x map[string]templates.Extension) string {
	e, ok := x[wcce.OIDTemplateInfo]
	if !ok {
		return ""
	}
	s := cryptobyte.String(e.Value)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	var major, minor uint32
	if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) || !seq.ReadASN1Integer(&major) ||
		!seq.Empty() && !seq.ReadASN1Integer(&minor) || !seq.Empty() {
		return "not a SEQUENCE of the template's object identifier, major and minor version"
	}
	return ""
}

func applicationPolicies(x map[string]templates.Extension) string {
	e, ok := x[wcce.OIDAppPolicies]
	if !ok {
		return ""
	}
	oids, ok := templates.ReadOIDs(e.Value)
	slices.Sort(oids)
	if !ok || len(slices.Compact(slices.Clone(oids))) != len(oids) {
		return "not a list of different policies"
	}
	return ""
}

func policiesMatchEKU(x map[string]templates.Extension) string {
	app, hasApp := x[wcce.OIDAppPolicies]
	eku, hasEKU := x[oidEKU]
	if !hasApp || !hasEKU {
		return ""
	}
	want, _ := templates.ReadOIDs(app.Value)
	var got []string
	s := cryptobyte.String(eku.Value)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) {
		return ""
	}
	for !list.Empty() {
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1ObjectIdentifier(&oid) {
			return ""
		}
		got = append(got, oid.String())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		return fmt.Sprintf("the application policies are %v, the extended key usages %v: Windows and others would allow different uses", want, got)
	}
	return ""
}

func securityExtension(x map[string]templates.Extension) string {
	e, ok := x[oidSID]
	if !ok {
		return ""
	}
	names, ok := otherNames(e.Value)
	if !ok || len(names) != 1 || names[0].oid != oidSIDName {
		return "not one name with a SID"
	}
	var text cryptobyte.String
	if !names[0].value.ReadASN1(&text, cbasn1.OCTET_STRING) || !names[0].value.Empty() {
		return "the SID is not an OCTET STRING"
	}
	if _, err := security.ParseSIDText(string(text)); err != nil {
		return err.Error()
	}
	return ""
}

// privateNotCritical guards everybody but Windows: nothing else knows these extensions, and what does not know a critical
// one refuses the certificate.
func privateNotCritical(x map[string]templates.Extension) string {
	for _, oid := range []string{wcce.OIDTemplateName, wcce.OIDTemplateInfo, wcce.OIDAppPolicies, oidSID, oidSMIMECaps} {
		if x[oid].Critical {
			return fmt.Sprintf("extension %s is critical: only Windows could use the certificate", oid)
		}
	}
	return ""
}

func upn(x map[string]templates.Extension) string {
	names, _ := otherNames(x[oidSAN].Value)
	for _, n := range names {
		if n.oid != oidUPN {
			continue
		}
		var text cryptobyte.String
		if !n.value.ReadASN1(&text, cbasn1.UTF8String) || !n.value.Empty() || !utf8.Valid(text) {
			return "the user principal name is not a UTF8String"
		}
		user, domain, ok := strings.Cut(string(text), "@")
		if !ok || user == "" || domain == "" {
			return fmt.Sprintf("the user principal name %q is not user@domain", string(text))
		}
	}
	return ""
}

func directoryGUID(x map[string]templates.Extension) string {
	names, _ := otherNames(x[oidSAN].Value)
	for _, n := range names {
		if n.oid != oidDirectoryGUID {
			continue
		}
		var guid cryptobyte.String
		if !n.value.ReadASN1(&guid, cbasn1.OCTET_STRING) || !n.value.Empty() || len(guid) != 16 {
			return "the directory GUID is not an OCTET STRING of 16 octets"
		}
	}
	return ""
}

func smimeCapabilities(x map[string]templates.Extension) string {
	if e, ok := x[oidSMIMECaps]; ok {
		if _, ok := templates.ReadOIDs(e.Value); !ok {
			return "not a list of capabilities"
		}
	}
	return ""
}

// otherName is GeneralName otherName (RFC 5280 4.2.1.6).
type otherName struct {
	oid   string
	value cryptobyte.String
}

// otherNames returns the names of this kind in GeneralNames; false where they cannot be read.
func otherNames(der []byte) ([]otherName, bool) {
	s := cryptobyte.String(der)
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, false
	}
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	var out []otherName
	for !list.Empty() {
		var name, value cryptobyte.String
		var tag cbasn1.Tag
		var oid asn1.ObjectIdentifier
		if !list.ReadAnyASN1(&name, &tag) {
			return nil, false
		}
		if tag != constructed {
			continue
		}
		if !name.ReadASN1ObjectIdentifier(&oid) || !name.ReadASN1(&value, constructed) || !name.Empty() {
			return nil, false
		}
		out = append(out, otherName{oid.String(), value})
	}
	return out, true
}
