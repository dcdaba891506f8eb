package risk

import "strings"

// Status is how a rule applies to a gateway.
type Status string

// The statuses.
const (
	Checked       Status = "checked"                // Find looks for it
	Closed        Status = "closed by construction" // it cannot happen here, and Proof is the test that fails if it can
	NotApplicable Status = "not applicable"         // it is about something that is not here, or that nobody sees from here
)

// Rule is one of the known ways to misuse certificate services.
type Rule struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Status Status `json:"status"`
	Looks  string `json:"looks"` // what it looks at, or why it is closed or does not apply
	Level  string `json:"level"` // its severity, and why a template with it is or is not served
	Proof  string `json:"proof"` // tests
	Spec   string `json:"spec"`
}

const (
	onlyChosen = "Only enrollers who are no administrators count, and only where neither an approval nor a signature is needed"
	notIssued  = "error where a CA offers it to them, else warning: the certificate itself makes somebody another account"
)

// Rules lists all rules, in their order.
func Rules() []Rule { return rules }

var rules = []Rule{
	{"ESC1", "The enrollee names the subject of a logon certificate", Checked, "ENROLLEE_SUPPLIES_SUBJECT with a purpose of logon. " + onlyChosen,
		notIssued, "templates/risk TestEachFixClosesItsFinding", "[MS-CRTD] 2.28, [MS-WCCE] 3.2.2.6.2.1.4.5.9"},
	{"ESC2", "Certificates for every purpose", Checked, "no purpose at all, or anyExtendedKeyUsage. " + onlyChosen,
		notIssued + ", as an agent for others", "templates/risk TestEachFixClosesItsFinding", "[MS-CRTD] 2.12, [MS-CRTD] 2.25, RFC 5280 4.2.1.12"},
	{"ESC3", "Certificates of enrollment agents", Checked, "the purpose Certificate Request Agent, and templates that take one such signature for a logon certificate. " + onlyChosen,
		"error where everybody is an agent; warning where a group of people is, as the template is made for that; note for the templates that take the signature",
		"templates/risk TestEachFixClosesItsFinding", "[MS-WCCE] 3.1.1.4.3.3, [MS-CRTD] 2.23"},
	{"ESC4", "Rights to change a template", Checked, "owner, WriteDACL, WriteOwner, GenericAll, GenericWrite and WriteProperty of the template, denials and limits to a property considered; a missing access control list; entries that are not understood",
		"error: who changes a template can make it ESC1; warning where only a property that no rule looks at can be changed", "templates/risk TestEachFixClosesItsFinding", "[MS-ADTS] 5.1.3, [MS-CRTD] 2.5"},
	{"ESC5", "Rights to change what holds trust", Checked, "the same rights, and CreateChild, on Public Key Services, Certificate Templates, Enrollment Services, OID, NTAuthCertificates, Certification Authorities and the roots in it, KRA, and on CAs of others. Cert Publishers and a CA's own computer are let through. AIA and CDP, computers and domain objects are not read",
		"error, but templates are served: other rights are needed too, and the gateway would serve nothing at all", "templates/risk TestObjectsAroundTemplates", "[MS-WCCE] 2.2.2.11"},
	{"ESC6", "Names from request attributes (EDITF_ATTRIBUTESUBJECTALTNAME2)", Closed, "of the attributes beside a request only CertificateTemplate is read; names come from the directory, or from the signed request where the template says so",
		"never found", "test/e2e TestNamesBesideARequestAreIgnored, templates TestTheProfileIsComplete", "[MS-WCCE] 2.2.2.7.10"},
	{"ESC7", "Rights to manage the CA", Checked, "rights to change the pKIEnrollmentService object of the gateway's own CAs; whether other accounts of the machine can change the database or the configuration. There is no remote right to manage the CA: requests are approved by who can run the command on the gateway's machine",
		"error, but templates are served, as for ESC5", "templates/risk TestObjectsAroundTemplates", "[MS-CSRA] 3.1.1.7"},
	{"ESC8", "Relayed authentication to the HTTP endpoint", Checked, "enrollment is over TLS with Kerberos only; a ticket for another service, a replayed one, or one bound to another TLS channel is refused; plain HTTP has revocation lists only. Whether channel binding is demanded is looked at",
		"note while clients without channel binding are let in", "gateway/kerberos TestChannelBindingStopsRelayedTokens, TestTransportKeepsTokensOffPlainHTTP; test/e2e TestBadInputIsRefusedClearly", "[MS-WSTEP] 3.1.1.1, RFC 5056"},
	{"ESC9", "Certificates without the account's SID", Checked, "NO_SECURITY_EXTENSION with a purpose of logon. " + onlyChosen,
		notIssued + ", with the right to change that account's name", "templates/risk TestEachFixClosesItsFinding", "[MS-CRTD] 2.26, [MS-WCCE] 2.2.2.7.7.4"},
	{"ESC10", "Weak mapping on domain controllers", NotApplicable, "StrongCertificateBindingEnforcement and CertificateMappingMethods are in the registry of domain controllers, which nobody reads from here. What the gateway adds: each certificate with names from the directory has the SID extension, so that the strong mapping works",
		"never found", "templates TestTheProfileIsComplete", "[MS-WCCE] 2.2.2.7.7.4"},
	{"ESC11", "Relayed RPC without privacy (IF_ENFORCEENCRYPTICERTREQUEST)", Closed, "there is no RPC endpoint, and no NTLM on any",
		"never found", "test/e2e TestBadInputIsRefusedClearly", "[MS-ICPR] 3.2"},
	{"ESC12", "A shell on the CA with its key in a USB HSM", NotApplicable, "it is about a password in the registry of a Windows CA with a YubiHSM; who has a shell as the gateway's account has the gateway",
		"never found", "", ""},
	{"ESC13", "Issuance policies that give a group", Checked, "msPKI-Certificate-Policy with an OID whose msDS-OIDToGroupLink is set, with a purpose of logon; and rights to set that link. " + onlyChosen,
		notIssued + " by membership; accept it where the link is wanted (authentication mechanism assurance)", "templates/risk TestEachFixClosesItsFinding, TestObjectsAroundTemplates", "[MS-CRTD] 2.24, [MS-CRTD] 2.29"},
	{"ESC14", "Weak explicit mapping (altSecurityIdentities)", NotApplicable, "the mappings are attributes of accounts, which are not searched; certificates of the gateway have the SID extension, which goes before weak mappings",
		"never found", "templates TestTheProfileIsComplete", "[MS-PKCA] 3.1.5.2.1"},
	{"ESC15", "Purposes from the request in schema 1 (CVE-2024-49019)", Checked, "schema 1 with ENROLLEE_SUPPLIES_SUBJECT. Closed by construction here, as purposes come from the template only; another CA of the forest may not be corrected",
		"note: this gateway is not concerned", "templates TestPurposesInARequestAreIgnored", "[MS-WCCE] 3.2.2.6.2.1.4.5"},
	{"ESC16", "A CA that leaves the SID extension out of all certificates", Closed, "there is no such setting; what a CA returns is compared with what was decided, and a certificate without the extension is not handed out",
		"never found", "test/e2e TestACertificateThatDiffersFromTheDecisionIsNotHandedOut, templates TestTheProfileIsComplete", "[MS-WCCE] 2.2.2.7.7.4"},
	{"ESC17", "The enrollee names the server of a server certificate", Checked, "ENROLLEE_SUPPLIES_SUBJECT with server or KDC authentication or every purpose. " + onlyChosen,
		"warning: ordinary for web servers, where a group of people was chosen", "templates/risk TestEachFixClosesItsFinding", "[MS-CRTD] 2.28, RFC 5280 4.2.1.12"},
	{"kerberos-rc4", "RC4 tickets for the gateway", Checked, "kerberos.allow_rc4 in the configuration", "warning", "templates/risk TestTheGatewayItself", "RFC 8429"},
}

// ruleByName finds a rule, ignoring case; the zero Rule where there is none.
func ruleByName(name string) Rule {
	for _, r := range rules {
		if strings.EqualFold(r.Name, name) {
			return r
		}
	}
	return Rule{}
}

// Known tells whether there is a rule of the name that can find anything.
func Known(name string) bool { return ruleByName(name).Status == Checked }

// Title is what a rule is called.
func Title(name string) string { return ruleByName(name).Title }
