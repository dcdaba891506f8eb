package risk

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// flagIssuancePolicy is the kind of OID objects that groups can be linked to ([MS-CRTD] 2.29).
const flagIssuancePolicy = 2

// certPublishers tells whether a SID is the group Cert Publishers, whose members are the computers of CAs: Windows gives
// it the containers below.
func certPublishers(sid security.SID) bool {
	return strings.HasPrefix(string(sid), "S-1-5-21-") && rid(sid) == "517"
}

// objects applies the rules about everything that is no template.
func (f *finder) objects() {
	for _, s := range f.snapshot.Services {
		f.service(s)
	}
	for i := range f.snapshot.PKI {
		f.container(&f.snapshot.PKI[i])
	}
	for _, o := range f.snapshot.OIDs {
		f.policy(o)
	}
}

// service is about who can change a CA's object: ESC7 for the gateway's own CAs, ESC5 for others.
func (f *finder) service(s *templates.EnrollmentService) {
	own := func(sid security.SID) bool { return certPublishers(sid) || f.hostOf(s, sid) }
	w := writers(s.Security, security.MaskWriteProperty|security.MaskWriteDACL|security.MaskWriteOwner, extendedRight, own)
	if len(w.who) == 0 {
		return
	}
	rule := "ESC5"
	if slices.ContainsFunc(f.gateway.CAs, func(name string) bool { return strings.EqualFold(name, s.Name) }) {
		rule = "ESC7"
	}
	f.add(Finding{Rule: rule, Severity: Error, Kind: KindCA, Object: s.Name, DN: s.DN, Who: w.who,
		How:     fmt.Sprintf("They have %s on the CA's object: they decide which templates it offers and who may enroll, and can offer one that is dangerous.", strings.Join(w.ways, ", ")),
		Changes: []Change{withdraw(s.Security, w.aces, w.owner)}})
}

// hostOf tells whether a SID is the computer that the CA runs on, which Windows lets change the CA's object.
func (f *finder) hostOf(s *templates.EnrollmentService, sid security.SID) bool {
	host, _, _ := strings.Cut(s.DNSHostName, ".")
	_, account, ok := strings.Cut(f.names[sid], `\`)
	return ok && host != "" && strings.EqualFold(account, host+"$")
}

// containerRisks says what control of an object below CN=Public Key Services gives. AIA and CDP are not in it: certificates
// in AIA are not trusted for being there, and nobody becomes somebody else by a revocation list.
var containerRisks = map[string]struct {
	severity Severity
	how      string
}{
	"public key services":       {Error, "everything below is theirs by inheritance, templates and trust among it"},
	"certificate templates":     {Error, "they can add templates of their own, or make all of them theirs by inheritance"},
	"enrollment services":       {Error, "they can publish a CA of their own, or make all CAs' objects theirs"},
	"oid":                       {Error, "they can add issuance policies that are linked to groups"},
	"ntauthcertificates":        {Error, "they can add a CA of their own, whose certificates the forest accepts for logon"},
	"certification authorities": {Error, "they can add a root CA that all computers of the forest trust"},
	"kra":                       {Warning, "they can name recovery agents for CAs that take them from there; this gateway does not"},
}

// container is ESC5: who can change the objects that hold trust.
func (f *finder) container(o *templates.PKIObject) {
	risk, known := containerRisks[strings.ToLower(o.Name)]
	if !known && strings.Contains(strings.ToLower(o.DN), ",cn=certification authorities,") {
		risk.severity, risk.how = Error, "they can replace a root certificate that all computers of the forest trust"
	} else if !known {
		return
	}
	x := Finding{Rule: "ESC5", Severity: risk.severity, Kind: KindContainer, Object: o.Name, DN: o.DN}
	switch {
	case o.Security == nil:
		x.Severity, x.How, x.Fix = Note, "Its permissions cannot be read: nobody knows who can change it.", "let the gateway's account read the security descriptor of "+o.DN
	default:
		w := writers(o.Security, security.MaskChange, extendedRight, certPublishers)
		if len(w.who) == 0 {
			return
		}
		x.Who, x.How = w.who, fmt.Sprintf("They have %s: %s.", strings.Join(w.ways, ", "), risk.how)
		x.Changes = []Change{withdraw(o.Security, w.aces, w.owner)}
	}
	f.add(x)
}

// policy is the half of ESC13 that is in the OID object: who can link an issuance policy to a group.
func (f *finder) policy(o templates.OIDObject) {
	if o.Flags&flagIssuancePolicy == 0 || o.Security == nil {
		return
	}
	w := writers(o.Security, security.MaskWriteProperty|security.MaskWriteDACL|security.MaskWriteOwner, func(c security.Control) bool {
		return c.HasObject && c.Mask&security.MaskWriteProperty != 0 && properties[c.Object.String()] != attrLink
	}, nil)
	if len(w.who) == 0 {
		return
	}
	severity, how := Warning, "no template asks for the policy now."
	for _, t := range f.snapshot.Templates {
		if slices.Contains(t.IssuancePolicies, o.OID) {
			severity, how = Error, fmt.Sprintf("who logs on with a certificate of template %s is then a member of it.", t.Name)
		}
	}
	f.add(Finding{Rule: "ESC13", Severity: severity, Kind: KindOID, Object: o.OID, DN: o.DN, Who: w.who,
		How:     fmt.Sprintf("They have %s on the issuance policy and can link it to a group; %s", strings.Join(w.ways, ", "), how),
		Changes: []Change{withdraw(o.Security, w.aces, w.owner)}})
}

// own looks at the gateway itself.
func (f *finder) own() {
	const others = 0o022
	files := func(path, what string, mode, bad uint32) {
		if mode&bad == 0 {
			return
		}
		f.add(Finding{Rule: "ESC7", Severity: Error, Kind: KindGateway, Object: path,
			How:     fmt.Sprintf("Other accounts of the machine can change %s (mode %04o): who does approves requests, designates recovery agents, or has dangerous templates served.", what, mode&0o7777),
			Changes: []Change{{Files: "chmod go-w " + path}}})
	}
	files(f.gateway.Data, "the folder with the database", uint32(f.gateway.DataMode), others)
	files(f.gateway.Config, "the configuration", uint32(f.gateway.ConfigMode), others)
	if !f.gateway.NeedBinding {
		f.add(Finding{Rule: "ESC8", Severity: Note, Kind: KindGateway, Object: "listen.https",
			How: "Clients that bind their ticket to the TLS channel are checked; clients that do not, such as old ones, are let in. A ticket for this gateway could be relayed from such a client by who already sits inside its TLS connection.",
			Fix: "set kerberos.require_channel_binding, once every client binds its ticket; keep the TLS key and the SPN to this machine"})
	}
	if f.gateway.AcceptsRC4 {
		f.add(Finding{Rule: "kerberos-rc4", Severity: Warning, Kind: KindGateway, Object: "kerberos.allow_rc4",
			How: "Anybody in the domain gets an RC4 ticket for the service account and cracks its password offline; with it they make tickets in which they are anybody.",
			Fix: "set msDS-SupportedEncryptionTypes to 24 on the service account and take allow_rc4 away"})
	}
}
