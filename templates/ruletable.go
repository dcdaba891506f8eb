package templates

// Rule says what is done here about one attribute of templates, or about one processing rule of a CA.
type Rule struct {
	Name string `json:"name"`
	Spec string `json:"spec"`
	Does string `json:"does"`
	Test string `json:"test"` // the test that proves it
}

// The tests that prove more than one thing.
const (
	testFlags     = "TestEveryFlagDoesWhatTheTableSays"
	testDecide    = "TestDecisions"
	testProfile   = "TestTheProfileIsComplete"
	testParse     = "TestEveryLabTemplateParses"
	testBadInput  = "TestMalformedTemplatesAreErrorsThatNameTheAttribute"
	testSigners   = "TestSignatures"
	testAutomatic = "TestAutoEnrollmentSaysWhatWindowsDoesNot"
)

// AttributeRules lists the attributes of certificate templates ([MS-CRTD] 2), besides the flags.
func AttributeRules() []Rule {
	return []Rule{
		{"cn", "[MS-CRTD] 2.1", "the name by which requests of schema 1 clients, and CAs, mean the template", testDecide},
		{"displayName", "[MS-CRTD] 2.2", "shown to people", "TestPoliciesSurviveTheWire"},
		{"distinguishedName", "[MS-CRTD] 2.3", "where the object is", testParse},
		{"nTSecurityDescriptor", "[MS-CRTD] 2.5", "Enroll and AutoEnroll, by the caller's whole token; an entry that is not understood closes the door", "TestTheFirstApplicableACEDecides"},
		{"revision", "[MS-CRTD] 2.6", "a request for a later version than the directory has is refused", testDecide},
		{"pKICriticalExtensions", "[MS-CRTD] 2.7", "these extensions are critical", testProfile},
		{"pKIDefaultCSPs", "[MS-CRTD] 2.8", "told to clients, in order of preference", "TestPoliciesAreTailored"},
		{"pKIDefaultKeySpec", "[MS-CRTD] 2.9", "told to clients", "TestPoliciesSurviveTheWire"},
		{"pKIEnrollmentAccess", "[MS-CRTD] 2.10", "not read: nTSecurityDescriptor says who may enroll", testParse},
		{"pKIExpirationPeriod", "[MS-CRTD] 2.11", "how long certificates are valid; never longer than the CA's own", "TestValidityEndsWithTheCA"},
		{"pKIExtendedKeyUsage", "[MS-CRTD] 2.12", "the purposes, where there are no application policies", testProfile},
		{"pKIKeyUsage", "[MS-CRTD] 2.13", "the key usage, as it fits an RSA or an elliptic curve key", testProfile},
		{"pKIMaxIssuingDepth", "[MS-CRTD] 2.14", "for CAs only, which are refused", testFlags},
		{"pKIOverlapPeriod", "[MS-CRTD] 2.15", "told to clients: how long before the end they renew; cut as the CA cuts the validity", "TestTheTimeOfRenewalIsCutWithTheValidity"},
		{"msPKI-Template-Schema-Version", "[MS-CRTD] 2.16", "1 to 4; any other is refused", testDecide},
		{"msPKI-Template-Minor-Revision", "[MS-CRTD] 2.17", "as revision", testDecide},
		{"msPKI-RA-Signature", "[MS-CRTD] 2.18", "how many others have to sign the request; a key that signs twice counts once", testSigners},
		{"msPKI-Minimal-Key-Size", "[MS-CRTD] 2.19", "shorter keys are refused", testDecide},
		{"msPKI-Cert-Template-OID", "[MS-CRTD] 2.20", "the OID by which requests, and certificates, mean the template", testDecide},
		{"msPKI-Supersede-Templates", "[MS-CRTD] 2.21", "told to clients, which act on it; explain says when. A published certificate takes those of superseded templates out of userCertificate", testAutomatic},
		{"msPKI-RA-Policies", "[MS-CRTD] 2.22", "issuance policies that a signer has to have", testSigners},
		{"msPKI-RA-Application-Policies", "[MS-CRTD] 2.23", "purposes that a signer has to have; in schema 3 and 4 also the algorithms and lengths for keys and hashes; an unknown property is refused", testSigners},
		{"msPKI-Certificate-Policy", "[MS-CRTD] 2.24", "the issuance policies; one that is linked to a group is named in the decision", "TestIssuancePolicies"},
		{"msPKI-Certificate-Application-Policy", "[MS-CRTD] 2.25", "the purposes, also as extended key usages", testProfile},
		{"msDS-OIDToGroupLink", "[MS-ADA2] msDS-OIDToGroupLink", "of issuance policies: who logs on with such a certificate gets the group", "TestIssuancePolicies"},
	}
}

// ProcessingRules lists what a CA has to do with a request ([MS-WCCE] 3.2.2.6.2.1), in the order in which it is done here.
func ProcessingRules() []Rule {
	return []Rule{
		{"new requests", "[MS-WCCE] 3.2.2.6.2.1.2", "PKCS#10, PKCS#7 and CMC; every signature is verified before anything else is looked at", "TestEveryRecordedRequestDecodesAndVerifies"},
		{"locating the template", "[MS-WCCE] 3.2.2.6.2.1.4.1", "by name, OID or both, which must agree; the CA has to offer it", testDecide},
		{"template version", "[MS-WCCE] 3.2.2.6.2.1.4.2", "not later than the directory's", testDecide},
		{"unknown flags and attributes", "[MS-CRTD] 2", "the template is not served, and the reason names them", "TestAnUnknownFlagBitIsRefusedByName"},
		{"account", "[MS-WCCE] 3.2.2.6.2.1.4.4.1", "enabled, and a user or a computer as the template says", testDecide},
		{"permission of the end entity", "[MS-WCCE] 3.2.2.6.2.1.4.3", "the Enroll right on CA and template", "TestADenyEntryNeverAllows"},
		{"requests on behalf of others", "[MS-WCCE] 3.2.2.6.2.1.2.1", "by an enrollment agent with a certificate that was issued here to the account itself, within the rules in the configuration, for subjects with the Enroll right", "TestOnBehalfOfOthers"},
		{"signatures of registration authorities", "[MS-WCCE] 3.2.2.6.2.1.4.5.1", "as many as the template says, by certificates that were issued here and are neither revoked nor over", testSigners},
		{"private key archival", "[MS-WCCE] 3.2.2.6.2.1.2.2", "the enclosed key is proven to fit and sealed to the recovery agents before any CA hears of the request", "TestAnArchivedEnrollmentFromTicketToRecovery"},
		{"key length and algorithm", "[MS-WCCE] 3.2.2.6.2.1.4.5.2", "of the public key", testDecide},
		{"renewals", "[MS-WCCE] 3.2.2.6.2.1.2.3", "for the same template, by the account that has the certificate; with the same key where the template says so", "TestARenewalIsSignedByTheOldKey"},
		{"renewals that the old certificate approves", "[MS-WCCE] 3.2.2.6.2.1.4.8", "of a certificate that was issued here and is neither revoked nor over, with the same names", "TestRenewalsThatTheOldCertificateApproves"},
		{"subject and alternative names", "[MS-WCCE] 3.2.2.6.2.1.4.5.9", "from the directory; from the request only where the template says so", "TestNamesThatDoNotFitACertificateAreErrors"},
		{"security extension", "[MS-WCCE] 2.2.2.7.7.4", "the account's SID; never copied from a request", testProfile},
		{"certificate template extension", "[MS-WCCE] 2.2.2.7.7", "in every certificate: name in schema 1, OID and version later", testProfile},
		{"key usage by kind of key", "[MS-WCCE] 3.2.2.6.2.1.4.4.4", "key agreement for elliptic curves, encipherment for RSA", testProfile},
		{"issuance policies", "[MS-WCCE] 3.2.2.6.2.1.4.5.8", "those of the template, or of them the requested ones", "TestIssuancePolicies"},
		{"application policies in the request", "[MS-WCCE] 2.2.2.7.7.3", "ignored: purposes come from the template", testProfile},
		{"names in request attributes", "[MS-WCCE] 2.2.2.7.10", "ignored, but for the template's name; one that names another account is refused", "TestTheCAGetsTheCSRAndNothingElse"},
		{"validity", "[MS-WCCE] 3.2.2.6.2.1.4.4.2", "the template's, cut to the end of the CA certificate", "TestValidityEndsWithTheCA"},
		{"publishing to the account", "[MS-WCCE] 3.2.2.1.5", "in the background, after the request has ended: tried again until it succeeds; expired, revoked and superseded certificates of the gateway are removed", "TestACertificateIsPublishedAndItsRenewalTakesItsPlace"},
		{"publishing to the KRA container", "[MS-WCCE] 3.2.2.1.4", "the same, to the object with the CA's sanitized name, which is created where it is missing", "TestTheKRAContainerGetsTheAgentsCertificate"},
		{"pending requests", "[MS-WCCE] 3.2.2.6.2.1.4.8", "wait for a certificate manager", "TestPendingRequestsWaitForAManager"},
	}
}
