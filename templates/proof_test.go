package templates

import (
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// signed is a certificate of a template, with a key of its own, that this gateway issued to the caller.
func signed(t testing.TB, in Input, key crypto.PublicKey, subject, san []byte, extensions ...pkix.Extension) *Proof {
	t.Helper()
	tmpl := in.Snapshot.TemplateByName(in.Template.Name)
	oid, value := TemplateInfoValue(tmpl)
	cert := &x509.Certificate{SerialNumber: big.NewInt(77), PublicKey: key, RawSubject: subject,
		Extensions: append(extensions, pkix.Extension{Id: mustOID(oid), Value: value})}
	if san != nil {
		cert.Extensions = append(cert.Extensions, pkix.Extension{Id: mustOID(oidSAN), Value: san})
	}
	return &Proof{Certificate: cert, Owner: in.Caller.SID}
}

// agentSignature is one by an enrollment agent's certificate.
func agentSignature(t testing.TB, in Input) Proof {
	return *signed(t, in, ecKey(t, elliptic.P256()), nil, nil, pkix.Extension{Id: mustOID(oidEKU), Value: oidSequence([]string{oidRequestAgent}, false)})
}

// onBehalf makes the request one of the caller, an agent, for bob, whom the rules of the gateway let it enroll.
func onBehalf(t testing.TB, f *forest, in *Input) {
	in.Request.RequestorName = `LAB\bob`
	in.Subject.SAMAccount, in.Subject.SID = "bob", f.sid(t, "Bob Baker")
	in.Subject.Groups = []security.SID{security.AuthenticatedUsers, f.sid(t, "Domain Users")}
	in.Request.Signatures = []Proof{agentSignature(t, *in)}
	in.Agents = []AgentRule{{Agents: []security.SID{in.Caller.SID}, Subjects: []security.SID{f.sid(t, "Domain Users")}, Templates: []string{in.Template.Name}}}
}

// renewing makes the request a renewal of a certificate with the same names.
func renewing(t testing.TB, in *Input, subject, san []byte) {
	in.Request.Renewal = signed(t, *in, ecKey(t, elliptic.P256()), subject, san)
}

// change replaces the template in a copy of the snapshot.
func change(in *Input, edit func(*Template)) {
	changed := *in.Snapshot.TemplateByName(in.Template.Name)
	edit(&changed)
	s := *in.Snapshot
	s.Templates = append(slices.DeleteFunc(slices.Clone(s.Templates), func(t *Template) bool { return t.Name == changed.Name }), &changed)
	in.Snapshot = &s
}

type proofCase struct {
	name     string
	template string
	change   func(*Input)
	outcome  Outcome
	code     hresult.Code
	check    string
}

func runProofCases(t *testing.T, cases []proofCase, groups ...string) {
	f := recordedForest(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := f.as(t, "alice", "Alice Archer", c.template, groups...)
			c.change(&in)
			d := Decide(in)
			if d.Outcome != c.outcome {
				t.Fatalf("outcome %s, want %s: %+v", d.Outcome, c.outcome, d.Checks)
			}
			i := slices.IndexFunc(d.Checks, func(k Check) bool { return !k.Pass })
			if c.outcome != Deny {
				return
			}
			if k := d.Checks[i]; k.Name != c.check || k.Code != c.code || k.Reason == "" || k.Fix == "" {
				t.Errorf("first failed check %+v, want %q with %v, reason and fix", k, c.check, c.code)
			}
		})
	}
}

// LabOnBehalf demands one signature of an enrollment agent.
func TestSignatures(t *testing.T) {
	f := recordedForest(t)
	plain := func(in *Input) Proof { return *signed(t, *in, ecKey(t, elliptic.P256()), nil, nil) }
	runProofCases(t, []proofCase{
		{"without any", "LabOnBehalf", func(in *Input) {}, Deny, hresult.SignaturePolicyRequired, "signatures"},
		{"by a certificate without the purpose", "LabOnBehalf", func(in *Input) { in.Request.Signatures = []Proof{plain(in)} }, Deny, hresult.SignatureRejected, "signatures"},
		{"by an agent, for oneself", "LabOnBehalf", func(in *Input) { in.Request.Signatures = []Proof{agentSignature(t, *in)} }, Allow, 0, ""},
		{"by a certificate that counts for nothing", "LabOnBehalf", func(in *Input) {
			s := agentSignature(t, *in)
			s.Distrust = errors.New("it is revoked")
			in.Request.Signatures = []Proof{s}
		}, Deny, hresult.SignatureRejected, "signatures"},
		{"fewer than demanded", "LabOnBehalf", func(in *Input) {
			in.Request.Signatures = []Proof{agentSignature(t, *in)}
			change(in, func(t *Template) { t.RASignatures = 2 })
		}, Deny, hresult.SignatureCount, "signatures"},
		{"the same key twice is one", "LabOnBehalf", func(in *Input) {
			s := agentSignature(t, *in)
			in.Request.Signatures = []Proof{s, s}
			change(in, func(t *Template) { t.RASignatures = 2 })
		}, Deny, hresult.SignatureCount, "signatures"},
		{"the request's own key is none", "LabOnBehalf", func(in *Input) {
			s := agentSignature(t, *in)
			s.Certificate.PublicKey = in.Request.PublicKey
			in.Request.Signatures = []Proof{s}
		}, Deny, hresult.SignatureCount, "signatures"},
		{"two keys, one of them with the purpose", "LabOnBehalf", func(in *Input) {
			in.Request.Signatures = []Proof{plain(in), agentSignature(t, *in)}
			change(in, func(t *Template) { t.RASignatures = 2 })
		}, Allow, 0, ""},
		{"without the issuance policy", "LabOnBehalf", func(in *Input) {
			in.Request.Signatures = []Proof{agentSignature(t, *in)}
			change(in, func(t *Template) { t.RAPolicies = []string{"1.2.3.4"} })
		}, Deny, hresult.SignatureRejected, "signatures"},
		{"with the issuance policy", "LabOnBehalf", func(in *Input) {
			s := agentSignature(t, *in)
			s.Certificate.Extensions = append(s.Certificate.Extensions, pkix.Extension{Id: mustOID(oidCertPolicies), Value: oidSequence([]string{"1.2.3.4"}, true)})
			in.Request.Signatures = []Proof{s}
			change(in, func(t *Template) { t.RAPolicies = []string{"1.2.3.4"} })
		}, Allow, 0, ""},
		{"where none is demanded", "LabUserAuth", func(in *Input) { in.Request.Signatures = []Proof{plain(in)} }, Deny, hresult.TooManySignatures, "signatures"},
		{"an unauthorized agent for somebody else", "LabOnBehalf", func(in *Input) { onBehalf(t, f, in); in.Agents = nil }, Deny, hresult.RestrictedOfficer, "on-behalf-of"},
	}, "Certificate Managers")
}

func TestOnBehalfOfOthers(t *testing.T) {
	f := recordedForest(t)
	with := func(edit func(*Input)) func(*Input) {
		return func(in *Input) { onBehalf(t, f, in); edit(in) }
	}
	runProofCases(t, []proofCase{
		{"an agent within its rules", "LabOnBehalf", with(func(in *Input) {}), Allow, 0, ""},
		{"without rules", "LabOnBehalf", with(func(in *Input) { in.Agents = nil }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a rule for another template", "LabOnBehalf", with(func(in *Input) { in.Agents[0].Templates = []string{"User"} }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a rule for another agent", "LabOnBehalf", with(func(in *Input) { in.Agents[0].Agents = []security.SID{in.Subject.SID} }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a rule for other subjects", "LabOnBehalf", with(func(in *Input) { in.Agents[0].Subjects = []security.SID{in.Caller.SID} }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"without a signature", "LabOnBehalf", with(func(in *Input) { in.Request.Signatures = nil }), Deny, hresult.SignaturePolicyRequired, "on-behalf-of"},
		{"with another account's agent certificate", "LabOnBehalf", with(func(in *Input) { in.Request.Signatures[0].Owner = in.Subject.SID }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"with a revoked agent certificate", "LabOnBehalf", with(func(in *Input) { in.Request.Signatures[0].Distrust = errors.New("it is revoked") }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"signed by a certificate that is no agent's", "LabOnBehalf", with(func(in *Input) { in.Request.Signatures = []Proof{*signed(t, *in, ecKey(t, elliptic.P256()), nil, nil)} }),
			Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a template without the flag", "LabOnBehalf", with(func(in *Input) { change(in, func(t *Template) { t.EnrollmentFlags &^= EnrollAllowOnBehalfOf }) }),
			Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a subject without the Enroll right", "LabOnBehalf", with(func(in *Input) {
			in.Subject.Groups = []security.SID{f.sid(t, "Domain Users")}
			change(in, denyBob(f.sid(t, "Bob Baker")))
		}),
			Deny, hresult.TemplateDenied, "on-behalf-of"},
		{"a disabled agent", "LabOnBehalf", with(func(in *Input) { in.CallerDisabled = true }), Deny, hresult.AccountDisabled, "account"},
		{"a disabled subject", "LabOnBehalf", with(func(in *Input) { in.Subject.Disabled = true }), Deny, hresult.AccountDisabled, "account"},
		{"a renewal", "LabOnBehalf", with(func(in *Input) { renewing(t, in, nil, nil); in.Request.Renewal.Owner = in.Subject.SID }), Deny, hresult.RestrictedOfficer, "on-behalf-of"},
	}, "Certificate Managers")

	in := f.as(t, "alice", "Alice Archer", "LabOnBehalf", "Certificate Managers")
	onBehalf(t, f, &in)
	d := Decide(in)
	if sid := extension(d.Profile.Extensions, oidSIDExtension); !slices.Contains(d.Profile.SANs, "upn:"+in.Subject.UPN) || !strings.HasSuffix(string(sid), string(in.Subject.SID)) {
		t.Errorf("the certificate is not the subject's: %+v", d.Profile)
	}
}

// denyBob takes the Enroll right from one account.
func denyBob(sid security.SID) func(*Template) {
	return func(t *Template) {
		sd := *t.Security
		sd.DACL = append([]security.ACE{{Type: security.ACEDenyObject, Mask: security.MaskControlAccess, HasObject: true, Object: security.RightEnroll, SID: sid}}, sd.DACL...)
		t.Security = &sd
	}
}

func TestRenewalsThatTheOldCertificateApproves(t *testing.T) {
	subject, other := mustName(t, "CN", "www.lab.test"), mustName(t, "CN", "mail.lab.test")
	san, otherSAN := []byte("\x30\x0e\x82\x0cwww.lab.test"), []byte("\x30\x0f\x82\x0dmail.lab.test")
	old := func(edit func(*Input)) func(*Input) {
		return func(in *Input) {
			change(in, func(t *Template) { t.EnrollmentFlags |= EnrollPreviousApprovalValidate })
			in.Request.Subject, in.Request.Extensions = subject, []Extension{{OID: oidSAN, Value: san}}
			renewing(t, in, subject, san)
			edit(in)
		}
	}
	runProofCases(t, []proofCase{
		{"the same names need no second approval", "LabWebServer", old(func(in *Input) {}), Allow, 0, ""},
		{"names left out are the old ones", "LabWebServer", old(func(in *Input) { in.Request.Subject, in.Request.Extensions = []byte{0x30, 0}, nil }), Allow, 0, ""},
		{"another subject is approved anew", "LabWebServer", old(func(in *Input) { in.Request.Subject = other }), Pend, 0, ""},
		{"other alternative names are approved anew", "LabWebServer", old(func(in *Input) { in.Request.Extensions[0].Value = otherSAN }), Pend, 0, ""},
		{"without the flag it is approved anew", "LabWebServer", old(func(in *Input) {
			change(in, func(t *Template) { t.EnrollmentFlags &^= EnrollPreviousApprovalValidate })
		}), Pend, 0, ""},
		{"a revoked certificate approves nothing", "LabWebServer", old(func(in *Input) { in.Request.Renewal.Distrust = errors.New("it is revoked") }), Pend, 0, ""},
		{"another account's certificate is refused", "LabWebServer", old(func(in *Input) { in.Request.Renewal.Owner = "S-1-5-21-1-2-3-500" }), Deny, hresult.BadRenewalSubject, "renewal"},
		{"a key-based renewal needs no Enroll right", "LabWebServer", old(func(in *Input) {
			change(in, func(t *Template) {
				t.EnrollmentFlags |= EnrollPreviousApprovalKeyBasedRenewal
				denyBob(in.Caller.SID)(t)
			})
		}), Allow, 0, ""},
		{"any other does", "LabWebServer", old(func(in *Input) { change(in, denyBob(in.Caller.SID)) }), Deny, hresult.TemplateDenied, "enroll-right"},
		{"nor is a key-based renewal one for other names", "LabWebServer", old(func(in *Input) {
			in.Request.Subject = other
			change(in, func(t *Template) {
				t.EnrollmentFlags |= EnrollPreviousApprovalKeyBasedRenewal
				denyBob(in.Caller.SID)(t)
			})
		}), Deny, hresult.TemplateDenied, "enroll-right"},
		{"the old certificate supplies the names", "LabWebServer", old(func(in *Input) {
			change(in, func(t *Template) {
				t.EnrollmentFlags &^= EnrollPreviousApprovalValidate
				t.NameFlags |= NameOldCertSuppliesSubject
			})
		}), Pend, 0, ""},
		{"and no others", "LabWebServer", old(func(in *Input) {
			in.Request.Subject = other
			change(in, func(t *Template) {
				t.EnrollmentFlags &^= EnrollPreviousApprovalValidate
				t.NameFlags |= NameOldCertSuppliesSubject
			})
		}), Deny, hresult.BadRenewalSubject, "subject"},
		{"nor does a certificate that proves nothing", "LabWebServer", old(func(in *Input) {
			in.Request.Renewal.Distrust = errors.New("this gateway did not issue it")
			change(in, func(t *Template) {
				t.EnrollmentFlags &^= EnrollPreviousApprovalValidate
				t.NameFlags |= NameOldCertSuppliesSubject
			})
		}), Deny, hresult.BadRenewalSubject, "subject"},
	}, "Certificate Managers")
}

// Where names come from the directory, the old certificate has to name the account as it is now.
func TestRenewalsOfDirectoryNames(t *testing.T) {
	pend := func(in *Input, san []byte) {
		change(in, func(t *Template) { t.EnrollmentFlags |= EnrollPreviousApprovalValidate | EnrollPendAllRequests })
		renewing(t, in, nil, san)
	}
	mail, former := []byte("\x30\x10\x81\x0ealice@lab.test"), []byte("\x30\x10\x81\x0ealyce@lab.test")
	runProofCases(t, []proofCase{
		{"the same address", "LabUserAuth", func(in *Input) { pend(in, mail) }, Allow, 0, ""},
		{"a former address", "LabUserAuth", func(in *Input) { pend(in, former) }, Pend, 0, ""},
		{"no name at all", "LabUserAuth", func(in *Input) { pend(in, nil) }, Pend, 0, ""},
		{"a DNS name only", "LabUserAuth", func(in *Input) { pend(in, []byte("\x30\x0e\x82\x0cwww.lab.test")) }, Pend, 0, ""},
	})
}

func TestIssuancePolicies(t *testing.T) {
	f := recordedForest(t)
	const low, high = "1.2.3.4", "1.2.3.5"
	decide := func(flags uint32, policies, requested []string) Decision {
		in := f.as(t, "alice", "Alice Archer", "LabUserAuth")
		change(&in, func(t *Template) { t.EnrollmentFlags |= flags; t.IssuancePolicies = policies })
		if requested != nil {
			in.Request.Extensions = []Extension{{OID: oidCertPolicies, Value: oidSequence(requested, true)}}
		}
		return Decide(in)
	}
	for name, c := range map[string]struct {
		flags               uint32
		template, requested []string
		want                []string
		outcome             Outcome
	}{
		"those of the template":               {0, []string{low, high}, []string{"1.2.3.9"}, []string{low, high}, Allow},
		"of them the requested":               {EnrollIssuancePoliciesFromRequest, []string{low, high}, []string{high, "1.2.3.9"}, []string{high}, Allow},
		"none where none are requested":       {EnrollIssuancePoliciesFromRequest, []string{low, high}, nil, nil, Allow},
		"refused where the template has none": {EnrollIssuancePoliciesFromRequest, nil, []string{high}, nil, Deny},
	} {
		d := decide(c.flags, c.template, c.requested)
		got, _ := ReadOIDs(extension(d.Profile.Extensions, oidCertPolicies))
		if d.Outcome != c.outcome || !slices.Equal(got, c.want) || !slices.Equal(d.Profile.IssuancePolicies, c.want) {
			t.Errorf("%s: %s with %v", name, d.Outcome, got)
		}
	}
	f.snapshot.OIDs = map[string]OIDObject{high: {OID: high, GroupLink: "CN=Vault,DC=lab,DC=test"}}
	d := decide(0, []string{high}, nil)
	i := slices.IndexFunc(d.Checks, func(c Check) bool { return c.Name == "issuance-policies" })
	if i < 0 || !strings.Contains(d.Checks[i].Reason, "gets the group CN=Vault,DC=lab,DC=test") {
		t.Errorf("the linked group is not named: %+v", d.Checks)
	}
}
