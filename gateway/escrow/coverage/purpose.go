package coverage

import (
	"crypto/x509"

	"github.com/enrollgate/enrollgate/gateway/wcce"
)

// Purposes for which data is encrypted that has to be read later, when the key may be lost.
//
// EFS, its recovery and "any application policy": the names of IX509ExtensionMSApplicationPolicies,
// https://learn.microsoft.com/windows/win32/api/certenroll/nn-certenroll-ix509extensionmsapplicationpolicies. Document encryption:
// Protect-CmsMessage demands it, https://learn.microsoft.com/powershell/module/microsoft.powershell.security/protect-cmsmessage.
// BitLocker: the policy "Validate smart card certificate usage rule compliance", whose default it is,
// https://learn.microsoft.com/windows/client-management/mdm/policy-csp-admx-volumeencryption; with a last arc of 2 its data
// recovery agents'.
var encryptionPurposes = map[string]bool{
	"1.3.6.1.4.1.311.10.3.4":   true, // encrypting file system
	"1.3.6.1.4.1.311.10.3.4.1": true, // file recovery
	"1.3.6.1.4.1.311.80.1":     true, // document encryption
	"1.3.6.1.4.1.311.67.1.1":   true, // BitLocker drive encryption
	"1.3.6.1.4.1.311.67.1.2":   true, // BitLocker data recovery agent
	"1.3.6.1.4.1.311.10.12.1":  true, // any application policy
}

const encipherment = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageKeyAgreement

// Encrypts tells whether data may be encrypted to a certificate that is lost with its private key. Its key usage has key
// encipherment, data encipherment or key agreement, or there is no such extension, which forbids nothing (RFC 5280 4.2.1.3); and
// its purposes have e-mail protection or another of encryption, or any, or there is no such extension (RFC 5280 4.2.1.12). Web
// servers encrypt too, but nothing that is kept. Certificates of CAs, CA exchange and key recovery agents do not count: the
// gateway itself encrypts to those, and keeps no key of theirs.
func Encrypts(c *x509.Certificate) bool {
	if c.IsCA || c.KeyUsage != 0 && c.KeyUsage&encipherment == 0 {
		return false
	}
	found := len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0
	for _, purpose := range c.ExtKeyUsage {
		found = found || purpose == x509.ExtKeyUsageEmailProtection || purpose == x509.ExtKeyUsageAny
	}
	for _, oid := range c.UnknownExtKeyUsage {
		switch text := oid.String(); {
		case text == wcce.OIDCAExchange, text == wcce.OIDKeyRecovery:
			return false
		case encryptionPurposes[text]:
			found = true
		}
	}
	return found
}
