package risk

import (
	"testing"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// The templates that a new Windows forest has ([MS-CRTD] 3.1 and what adcs writes there): purposes, whether the enrollee
// names the subject, and who enrolls beside the administrators. A CA offers only some of them by itself; here one offers
// all, and no rule may say more than a note, else administrators would learn to look away.
func TestTheTemplatesOfANewWindowsForestAreNotBlocked(t *testing.T) {
	const (
		codeSigning, efs, efsRecovery = "1.3.6.1.5.5.7.3.3", "1.3.6.1.4.1.311.10.3.4", "1.3.6.1.4.1.311.10.3.4.1"
		ctl, ipsec, ocsp              = "1.3.6.1.4.1.311.10.3.1", "1.3.6.1.5.5.8.2.2", "1.3.6.1.5.5.7.3.9"
		exchange, recovery, replicate = "1.3.6.1.4.1.311.21.5", "1.3.6.1.4.1.311.21.6", "1.3.6.1.4.1.311.21.19"
		nobody                        = ""
		users, computers, radius      = "513", "515", "553"
		controllers                   = "516"
	)
	for _, x := range []struct {
		name     string
		schema   int
		supplies bool
		who      string
		purposes []string
	}{
		{"Administrator", 1, false, nobody, []string{ctl, efs, secureMail, oidClientAuth}},
		{"CA", 1, true, nobody, nil},
		{"CAExchange", 2, true, nobody, []string{exchange}},
		{"CEPEncryption", 1, true, nobody, []string{oidRequestAgent}},
		{"ClientAuth", 1, false, users, []string{oidClientAuth}},
		{"CodeSigning", 1, false, nobody, []string{codeSigning}},
		{"CrossCA", 2, true, nobody, nil},
		{"CTLSigning", 1, false, nobody, []string{ctl}},
		{"DirectoryEmailReplication", 2, false, controllers, []string{replicate}},
		{"DomainController", 1, false, controllers, []string{oidClientAuth, oidServerAuth}},
		{"DomainControllerAuthentication", 2, false, controllers, []string{oidClientAuth, oidServerAuth, smartCardLogon}},
		{"EFS", 1, false, users, []string{efs}},
		{"EFSRecovery", 1, false, nobody, []string{efsRecovery}},
		{"EnrollmentAgent", 1, false, nobody, []string{oidRequestAgent}},
		{"EnrollmentAgentOffline", 1, true, nobody, []string{oidRequestAgent}},
		{"ExchangeUser", 1, true, nobody, []string{secureMail}},
		{"ExchangeUserSignature", 1, true, nobody, []string{secureMail}},
		{"IPSECIntermediateOffline", 1, true, nobody, []string{ipsec}},
		{"IPSECIntermediateOnline", 1, false, computers, []string{ipsec}},
		{"KerberosAuthentication", 2, false, controllers, []string{oidClientAuth, oidServerAuth, smartCardLogon, oidKDC}},
		{"KeyRecoveryAgent", 2, false, nobody, []string{recovery}},
		{"Machine", 1, false, computers, []string{oidClientAuth, oidServerAuth}},
		{"MachineEnrollmentAgent", 1, false, nobody, []string{oidRequestAgent}},
		{"OCSPResponseSigning", 3, false, nobody, []string{ocsp}},
		{"OfflineRouter", 1, true, nobody, []string{oidClientAuth}},
		{"RASAndIASServer", 2, false, radius, []string{oidClientAuth, oidServerAuth}},
		{"SmartcardLogon", 1, false, nobody, []string{oidClientAuth, smartCardLogon}},
		{"SmartcardUser", 1, false, nobody, []string{secureMail, oidClientAuth, smartCardLogon}},
		{"SubCA", 1, true, nobody, nil},
		{"User", 1, false, users, []string{efs, secureMail, oidClientAuth}},
		{"UserSignature", 1, false, users, []string{secureMail, oidClientAuth}},
		{"WebServer", 1, true, nobody, []string{oidServerAuth}},
		{"Workstation", 2, false, computers, []string{oidClientAuth}},
	} {
		both := security.MaskControlAccess | security.MaskReadProperty | security.MaskWriteProperty
		full := []security.ACE{allow(domain+"519", 0xF00FF), limited(domainAdmins, uint32(both), security.RightEnroll.String()), limited(domain+"519", uint32(both), security.RightEnroll.String()),
			allow(security.AuthenticatedUsers, 0x20094)}
		if x.who != nobody {
			full = append(full, enroll(security.SID(domain+x.who)))
		}
		if x.who == controllers {
			full = append(full, enroll("S-1-5-9"), enroll(domain+"498"))
		}
		s := snapshot(user(purposes(x.purposes...), func(t *templates.Template) {
			t.Name, t.Schema, t.Security = x.name, x.schema, descriptor(full...)
			if t.NameFlags = templates.NameSANRequireUPN; x.supplies {
				t.NameFlags = templates.NameEnrolleeSuppliesSubject
			}
		}))
		for _, f := range Find(s, strict, nil) {
			t.Errorf("%s: %s %s: %s", x.name, f.Severity, f.Rule, f.How)
		}
	}
}
