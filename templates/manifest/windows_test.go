package manifest

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// windowsDefaults are some of the templates that Windows Server 2008 and later install, as [MS-CRTD] section 3, product
// behavior notes 41 and 42, lists their values: those with something that the others do not have.
const windowsDefaults = `
cn: Administrator; displayName: Administrator; flags: 66106; msPKI-Certificate-Name-Flag: -1509949440; msPKI-Enrollment-Flag: 41
msPKI-Minimal-Key-Size: 2048; msPKI-Private-Key-Flag: 16; msPKI-RA-Signature: 0; msPKI-Template-Minor-Revision: 1; msPKI-Template-Schema-Version: 1
pKICriticalExtensions: 2.5.29.15; pKIDefaultCSPs: 2,Microsoft Base Cryptographic Provider v1.0; pKIDefaultCSPs: 1,Microsoft Enhanced Cryptographic Provider v1.0
pKIDefaultKeySpec: 1; pKIExpirationPeriod: 004039872EE1FEFF; pKIExtendedKeyUsage: 1.3.6.1.4.1.311.10.3.1; pKIExtendedKeyUsage: 1.3.6.1.4.1.311.10.3.4
pKIExtendedKeyUsage: 1.3.6.1.5.5.7.3.4; pKIExtendedKeyUsage: 1.3.6.1.5.5.7.3.2; pKIKeyUsage: A000; pKIMaxIssuingDepth: 0; pKIOverlapPeriod: 0080A60AFFDEFFFF; revision: 4

cn: CA; displayName: Root Certification Authority; flags: 65745; msPKI-Certificate-Name-Flag: 1; msPKI-Enrollment-Flag: 0
msPKI-Minimal-Key-Size: 1024; msPKI-Private-Key-Flag: 16; msPKI-RA-Signature: 0; msPKI-Template-Minor-Revision: 1; msPKI-Template-Schema-Version: 1
pKICriticalExtensions: 2.5.29.15; pKICriticalExtensions: 2.5.29.19; pKIDefaultCSPs: 1,Microsoft Enhanced Cryptographic Provider v1.0; pKIDefaultKeySpec: 2
pKIExpirationPeriod: 00401EA4E865FAFF; pKIKeyUsage: 8600; pKIMaxIssuingDepth: -1; pKIOverlapPeriod: 0080A60AFFDEFFFF; revision: 5

cn: CAExchange; displayName: CA Exchange; flags: 65600; msPKI-Certificate-Application-Policy: 1.3.6.1.4.1.311.21.5; msPKI-Certificate-Name-Flag: 1
msPKI-Cert-Template-OID: 1.3.6.1.4.1.311.21.8.11034890.834619.12601478.16236816.7255827.176.1.26; msPKI-Enrollment-Flag: 1
msPKI-Minimal-Key-Size: 2048; msPKI-Private-Key-Flag: 0; msPKI-RA-Signature: 0; msPKI-Template-Minor-Revision: 0; msPKI-Template-Schema-Version: 2
pKICriticalExtensions: 2.5.29.15; pKIDefaultCSPs: 2,Microsoft Base Cryptographic Provider v1.0; pKIDefaultCSPs: 1,Microsoft Enhanced Cryptographic Provider v1.0
pKIDefaultKeySpec: 1; pKIExpirationPeriod: 00C01BD77FFAFFFF; pKIExtendedKeyUsage: 1.3.6.1.4.1.311.21.5; pKIKeyUsage: 2000; pKIMaxIssuingDepth: 0
pKIOverlapPeriod: 004096D536FFFFFF; revision: 106

cn: CrossCA; displayName: Cross Certification Authority; flags: 67600; msPKI-Certificate-Name-Flag: 1; msPKI-Enrollment-Flag: 8; msPKI-Minimal-Key-Size: 1024
msPKI-Cert-Template-OID: 1.3.6.1.4.1.311.21.8.11034890.834619.12601478.16236816.7255827.176.1.25; msPKI-Private-Key-Flag: 16
msPKI-RA-Application-Policies: 1.3.6.1.4.1.311.10.3.10; msPKI-RA-Signature: 1; msPKI-Template-Minor-Revision: 0; msPKI-Template-Schema-Version: 2
pKICriticalExtensions: 2.5.29.15; pKICriticalExtensions: 2.5.29.19; pKIDefaultCSPs: 1,Microsoft Enhanced Cryptographic Provider v1.0; pKIDefaultKeySpec: 2
pKIExpirationPeriod: 00401EA4E865FAFF; pKIKeyUsage: 8600; pKIMaxIssuingDepth: -1; pKIOverlapPeriod: 0080A60AFFDEFFFF; revision: 105

cn: SmartcardLogon; displayName: Smartcard Logon; flags: 197120; msPKI-Certificate-Name-Flag: -2113929216; msPKI-Enrollment-Flag: 0; msPKI-Minimal-Key-Size: 512
msPKI-Private-Key-Flag: 0; msPKI-RA-Signature: 0; msPKI-Template-Minor-Revision: 1; msPKI-Template-Schema-Version: 1; pKIDefaultKeySpec: 1
pKIExpirationPeriod: 004039872EE1FEFF; pKIExtendedKeyUsage: 1.3.6.1.4.1.311.20.2.2; pKIExtendedKeyUsage: 1.3.6.1.5.5.7.3.2; pKIKeyUsage: a000
pKIMaxIssuingDepth: 0; pKIOverlapPeriod: 0080A60AFFDEFFFF; revision: 6

cn: DirectoryEmailReplication; displayName: Directory Email Replication; flags: 196704; msPKI-Certificate-Application-Policy: 1.3.6.1.4.1.311.21.19
msPKI-Cert-Template-OID: 1.3.6.1.4.1.311.21.8.11034890.834619.12601478.16236816.7255827.176.1.29
msPKI-Certificate-Name-Flag: 150994944; msPKI-Enrollment-Flag: 41; msPKI-Minimal-Key-Size: 1024; msPKI-Private-Key-Flag: 0; msPKI-RA-Signature: 0
msPKI-Supersede-Templates: DomainController; msPKI-Template-Minor-Revision: 0; msPKI-Template-Schema-Version: 2; pKICriticalExtensions: 2.5.29.17
pKIDefaultCSPs: 1,Microsoft RSA SChannel Cryptographic Provider; pKIDefaultKeySpec: 1; pKIExpirationPeriod: 004039872EE1FEFF
pKIExtendedKeyUsage: 1.3.6.1.4.1.311.21.19; pKIKeyUsage: a000; pKIMaxIssuingDepth: 0; pKIOverlapPeriod: 0080A60AFFDEFFFF; revision: 122
`

func TestTheTemplatesOfWindowsAreReadable(t *testing.T) {
	f := &Forest{ConfigDN: "CN=Configuration,DC=x"}
	d := security.Descriptor{Owner: "S-1-5-18", HasDACL: true, Control: security.ControlDACLProtected}
	for block := range strings.SplitSeq(strings.TrimSpace(windowsDefaults), "\n\n") {
		a := templates.Attributes{attrDescriptor: [][]byte{d.Bytes()}}
		for line := range strings.FieldsFuncSeq(block, func(r rune) bool { return r == ';' || r == '\n' }) {
			name, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
			value := []byte(text)
			if name = strings.ToLower(name); name == "pkikeyusage" || strings.HasSuffix(name, "period") {
				value, _ = hex.DecodeString(text)
			}
			a[name] = append(a[name], value)
		}
		f.Templates = append(f.Templates, Object{"CN=" + a.First("cn"), a})
	}
	for i := range f.Templates {
		o := &f.Templates[i]
		text := export(t, f, o.Name())
		if strings.Contains(text, keyAttributes+":") || strings.Contains(text, "0x") {
			t.Errorf("something has no readable form:\n%s", text)
		}
		if p := plan(t, f, text); len(p.Differences) > 0 {
			t.Errorf("%s\n%s", p.Unified(), text)
		}
		comesBack(t, f, o)
	}
	for name, want := range map[string]string{"CA": "validity: 5y\nrenewal: 6w\n", "CAExchange": "validity: 1w\nrenewal: 1d\n",
		"SmartcardLogon": "oid: ''\nschema: 1\nversion: '6.1'\n", "DirectoryEmailReplication": "supersedes:\n  - DomainController\n"} {
		if text := export(t, f, name); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
