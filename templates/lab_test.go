package templates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// testdata/lab.ldif is what a Samba domain controller answered for the lab's templates, users and groups.
func readLDIF(t testing.TB) map[string]Attributes {
	t.Helper()
	text, err := os.ReadFile("testdata/lab.ldif")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Attributes{}
	for entry := range strings.SplitSeq(string(text), "\n\n") {
		a := Attributes{}
		for line := range strings.Lines(entry) {
			name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), ":")
			if !ok {
				continue
			}
			octets := []byte(strings.TrimPrefix(value, " "))
			if strings.HasPrefix(value, ":") {
				if octets, err = base64.StdEncoding.DecodeString(strings.TrimSpace(value[1:])); err != nil {
					t.Fatal(err)
				}
			}
			a[strings.ToLower(name)] = append(a[strings.ToLower(name)], octets)
		}
		if dn := a.First("dn"); dn != "" {
			out[dn] = a
		}
	}
	return out
}

const (
	labUsers     = ",CN=Users,DC=lab,DC=test"
	labTemplates = ",CN=Certificate Templates,CN=Public Key Services,CN=Services,CN=Configuration,DC=lab,DC=test"
	labCA        = "LAB Issuing CA"
)

// forest is the recorded forest with one CA that offers every template but User.
type forest struct {
	snapshot *Snapshot
	ldif     map[string]Attributes
	now      time.Time
}

func recordedForest(t testing.TB) *forest {
	t.Helper()
	f := &forest{ldif: readLDIF(t), now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	s := &Snapshot{Taken: f.now, ConfigDN: "CN=Configuration,DC=lab,DC=test"}
	service := &EnrollmentService{Name: labCA, Security: everybodyEnrolls(t)}
	for dn, a := range f.ldif {
		if !strings.HasSuffix(dn, labTemplates) {
			continue
		}
		tmpl, err := Parse(dn, a)
		if err != nil {
			t.Fatal(err)
		}
		s.Templates = append(s.Templates, tmpl)
		if tmpl.Name != "User" {
			service.Templates = append(service.Templates, tmpl.Name)
		}
	}
	s.Services = []*EnrollmentService{service}
	f.snapshot = s
	return f
}

// everybodyEnrolls gives Authenticated Users the Enroll right, as the lab's CA does.
func everybodyEnrolls(t testing.TB) *security.Descriptor {
	t.Helper()
	return &security.Descriptor{HasDACL: true, DACL: []security.ACE{{Type: security.ACEAllowObject, Mask: security.MaskControlAccess,
		HasObject: true, Object: security.RightEnroll, SID: security.AuthenticatedUsers}}}
}

func (f *forest) sid(t testing.TB, cn string) security.SID {
	t.Helper()
	sid, err := security.ParseSID(f.ldif["CN="+cn+labUsers]["objectsid"][0])
	if err != nil {
		t.Fatalf("%s: %v", cn, err)
	}
	return sid
}

// as returns the input for a user of the lab with a good request.
func (f *forest) as(t testing.TB, account, cn, template string, groups ...string) Input {
	t.Helper()
	sid := f.sid(t, cn)
	in := Input{
		Snapshot: f.snapshot, Now: f.now, Authority: Authority{Service: labCA, NotAfter: f.now.AddDate(3, 0, 0)},
		Caller: Caller{Principal: account + "@LAB.TEST", SID: sid, Groups: []security.SID{security.Everyone, security.AuthenticatedUsers, f.sid(t, "Domain Users")}},
		Subject: Subject{DN: "CN=" + cn + labUsers, CN: cn, SAMAccount: account, Mail: account + "@lab.test", UPN: account + "@lab.test", UPNExplicit: true, SID: sid,
			RDNs: [][]RDN{{part("CN", cn)}, {part("CN", "Users")}, {part("DC", "lab")}, {part("DC", "test")}}},
		Template: Reference{Name: template, Major: -1, Minor: -1},
		Request:  &Request{CMC: true, PublicKey: clientKey(), Subject: []byte{0x30, 0}},
	}
	for _, g := range groups {
		in.Caller.Groups = append(in.Caller.Groups, f.sid(t, g))
	}
	return in
}

// clientKey is the key of every request that does not say otherwise.
var clientKey = sync.OnceValue(func() *rsa.PublicKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return &k.PublicKey
})

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

func TestEveryLabTemplateParses(t *testing.T) {
	f := recordedForest(t)
	if len(f.snapshot.Templates) != 10 {
		t.Fatalf("%d templates, want 10", len(f.snapshot.Templates))
	}
	smime := f.snapshot.TemplateByName("labusersmime")
	switch {
	case smime == nil:
		t.Fatal("LabUserSMIME is missing")
	case !smime.Archives(), smime.Schema != 2, smime.Major != 100, smime.Minor != 4, smime.Validity != 365*24*time.Hour, smime.KeyUsage != 0xA000,
		smime.NameFlags != NameSubjectRequireDirectoryPath|NameSubjectRequireEmail|NameSANRequireEmail, smime.MinKeySize != 2048:
		t.Errorf("LabUserSMIME: %+v", smime)
	}
	v4 := f.snapshot.TemplateByName("LabV4")
	if v4.AsymmetricAlg != "ECDSA_P256" || v4.HashAlg != "SHA256" || v4.CNGKeyUsage != 2 || v4.SymmetricKeyLength != 168 {
		t.Errorf("LabV4: %+v", v4)
	}
	if got := f.snapshot.TemplateByName("LabOnBehalf").RAAppPolicies; !slices.Equal(got, []string{"1.3.6.1.4.1.311.20.2.1"}) {
		t.Errorf("LabOnBehalf: RA application policies %v", got)
	}
}

func TestDecisions(t *testing.T) {
	archived := func(in *Input) { in.Request.ArchivedKey, in.Request.ArchivedHash = true, true }
	cases := []struct {
		name     string
		template string
		groups   []string
		change   func(*Input)
		outcome  Outcome
		code     hresult.Code // of the first failed check
		check    string       // its name
	}{
		{"a member of the group with an enclosed key gets the archival certificate", "LabUserSMIME", []string{"SMIME Users"}, archived, Allow, 0, ""},
		{"someone outside of the group is refused", "LabUserSMIME", nil, archived, Deny, hresult.TemplateDenied, "enroll-right"},
		{"without an enclosed key an archival template is refused", "LabUserSMIME", []string{"SMIME Users"}, nil, Deny, hresult.ArchivedKeyRequired, "archival"},
		{"an enclosed key for a template that does not archive is refused", "LabUserAuth", nil, archived, Deny, hresult.ArchivedKeyUnexpected, "archival"},
		{"without a valid recovery agent an archival template is refused", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) {
			archived(in)
			in.Authority.Archival = hresult.New(hresult.NoValidKRA, "no agent")
		}, Deny, hresult.NoValidKRA, "archival"},
		{"a malformed enclosure is refused", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) {
			archived(in)
			in.Request.RejectArchival = hresult.New(hresult.BadRequestKeyArchival, "wrong hash")
		}, Deny, hresult.BadRequestKeyArchival, "archival"},
		{"without a mail attribute S/MIME is refused", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) { archived(in); in.Subject.Mail = "" }, Deny, hresult.SubjectEmailRequired, "subject"},
		{"a disabled account is refused", "LabUserAuth", nil, func(in *Input) { in.Subject.Disabled = true }, Deny, hresult.AccountDisabled, "account"},
		{"a user principal name is needed where the template says so", "LabUserAuth", nil, func(in *Input) { in.Subject.UPNExplicit = false }, Deny, hresult.SubjectUPNRequired, "subject"},
		{"a renewal that claims to keep an archived key is refused where the escrow does not have it", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) {
			renewSameKey(t, in)
		}, Deny, hresult.ArchivedKeyRequired, "archival"},
		{"a renewal that keeps an archived key need not enclose it again", "LabUserSMIME", []string{"SMIME Users"}, func(in *Input) {
			renewSameKey(t, in)
			in.Request.KeyInEscrow = true
		}, Allow, 0, ""},
		{"a plain user template is allowed", "LabUserAuth", nil, nil, Allow, 0, ""},
		{"a template that no CA offers is refused", "User", nil, nil, Deny, hresult.UnsupportedCertType, "offered"},
		{"an unknown template is refused", "Nonsense", nil, nil, Deny, hresult.UnsupportedCertType, "template"},
		{"a request without a template is refused", "", nil, nil, Deny, hresult.UnsupportedCertType, "template"},
		{"name and OID of different templates conflict", "LabUserAuth", nil, func(in *Input) { in.Template.OID = in.Snapshot.TemplateByName("LabV4").OID }, Deny, hresult.TemplateConflict, "template"},
		{"a newer version than stored is refused", "LabUserAuth", nil, func(in *Input) {
			in.Template = Reference{OID: in.Snapshot.TemplateByName("LabUserAuth").OID, Major: 101, Minor: 0}
		}, Deny, hresult.BadTemplateVersion, "version"},
		{"an older version is fine", "LabUserAuth", nil, func(in *Input) {
			in.Template = Reference{OID: in.Snapshot.TemplateByName("LabUserAuth").OID, Major: 99, Minor: 7}
		}, Allow, 0, ""},
		{"a short key is refused", "LabUserAuth", nil, func(in *Input) { k, _ := rsa.GenerateKey(rand.Reader, 1024); in.Request.PublicKey = &k.PublicKey }, Deny, hresult.KeyLength, "key"},
		{"an elliptic curve key for an RSA template is refused", "LabUserAuth", nil, func(in *Input) { in.Request.PublicKey = ecKey(t, elliptic.P384()) }, Deny, hresult.KeyLength, "key"},
		{"the curve that the template names is allowed", "LabV4", nil, func(in *Input) { in.Request.PublicKey = ecKey(t, elliptic.P256()) }, Allow, 0, ""},
		{"another curve is refused", "LabV4", nil, func(in *Input) { in.Request.PublicKey = ecKey(t, elliptic.P384()) }, Deny, hresult.KeyLength, "key"},
		{"an RSA key for a curve template is refused", "LabV4", nil, nil, Deny, hresult.KeyLength, "key"},
		{"a user may not have a computer's certificate", "LabMachine", []string{"Domain Computers"}, nil, Deny, hresult.TemplateDenied, "account"},
		{"names from the request wait for approval", "LabWebServer", []string{"Certificate Managers"}, func(in *Input) {
			in.Request.Subject = mustName(t, "CN", "www.lab.test")
		}, Pend, 0, ""},
		{"a request without any name is refused where the enrollee names the subject", "LabWebServer", []string{"Certificate Managers"}, nil, Deny, hresult.BadRequestSubject, "subject"},
		{"a dangerous template is refused by name", "LabVulnESC1", nil, func(in *Input) {
			in.Request.Subject = mustName(t, "CN", "Administrator")
			in.Hazards = map[string][]Hazard{"LabVulnESC1": {{Rule: "ESC1", Text: "anybody", Fix: "approve", Spec: "[MS-CRTD] 2.28"}}}
		}, Deny, hresult.NotSupported, "risk"},
		{"a request on behalf of somebody else is refused", "LabUserAuth", nil, func(in *Input) { in.Request.RequestorName = `LAB\bob` }, Deny, hresult.RestrictedOfficer, "on-behalf-of"},
		{"a trusted realm vouches for its own accounts only", "LabUserAuth", nil, func(in *Input) {
			in.Caller.Realm, in.Subject.Domain = "PART.TEST", Domain{DNS: "lab.test"}
		}, Deny, hresult.AccessDenied, "account"},
		{"and for those it does", "LabUserAuth", nil, func(in *Input) { in.Caller.Realm, in.Subject.Domain = "PART.TEST", Domain{DNS: "part.test"} }, Allow, 0, ""},
		{"an old picture of the directory decides nothing", "LabUserAuth", nil, func(in *Input) { in.MaxAge, in.Now = time.Hour, in.Now.Add(2*time.Hour) }, Deny, hresult.ServerUnavailable, "directory"},
		{"no picture of the directory decides nothing", "LabUserAuth", nil, func(in *Input) { in.Snapshot = nil }, Deny, hresult.ServerUnavailable, "directory"},
		{"a ticket for another SID than the directory's is refused", "LabUserAuth", nil, func(in *Input) { in.Subject.SID = "S-1-5-21-1-2-3-4" }, Deny, hresult.AccessDenied, "sid"},
		{"without Enroll on the CA everything is refused", "LabUserAuth", nil, func(in *Input) {
			s := *in.Snapshot
			s.Services = []*EnrollmentService{{Name: labCA, Templates: s.Services[0].Templates, Security: &security.Descriptor{HasDACL: true}}}
			in.Snapshot = &s
		}, Deny, hresult.EnrollDenied, "ca-enroll-right"},
	}
	f := recordedForest(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := f.as(t, "alice", "Alice Archer", c.template, c.groups...)
			if c.change != nil {
				c.change(&in)
			}
			d := Decide(in)
			if d.Outcome != c.outcome {
				t.Errorf("outcome %s, want %s: %+v", d.Outcome, c.outcome, d.Checks)
			}
			err := d.Err()
			if (err != nil) != (c.code != 0) {
				t.Fatalf("error %v, want %v", err, c.code)
			}
			if err == nil {
				return
			}
			if got := hresult.From(err).Code; got != c.code {
				t.Errorf("HRESULT %v, want %v (%v)", got, c.code, err)
			}
			first := d.Checks[slices.IndexFunc(d.Checks, func(k Check) bool { return !k.Pass })]
			if first.Name != c.check || first.Reason == "" || first.Spec == "" {
				t.Errorf("first failed check %+v, want %q with reason and source", first, c.check)
			}
			if d.Profile.Subject != nil || d.Profile.Extensions != nil {
				t.Error("a denied request has a profile")
			}
		})
	}
}

// renewSameKey makes the request a renewal with the same key, for a template that demands that.
func renewSameKey(t testing.TB, in *Input) {
	t.Helper()
	s := *in.Snapshot
	tmpl := *s.TemplateByName(in.Template.Name)
	tmpl.PrivateKeyFlags |= KeyRequireSameKeyRenewal
	s.Templates = []*Template{&tmpl}
	in.Snapshot = &s
	oid, value := TemplateInfoValue(&tmpl)
	in.Request.Renewal = &Proof{Owner: in.Subject.SID, Certificate: &x509.Certificate{SerialNumber: big.NewInt(1), PublicKey: in.Request.PublicKey,
		Extensions: []pkix.Extension{{Id: mustOID(oid), Value: value}}}}
}

func part(kind, value string) RDN { return RDN{Type: kind, Value: value} }

func mustName(t testing.TB, kind, value string) []byte {
	t.Helper()
	der, _, err := encodeName([][]RDN{{part(kind, value)}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAnUnknownFlagBitIsRefusedByName(t *testing.T) {
	f := recordedForest(t)
	a := Attributes{}
	for k, v := range f.ldif["CN=LabUserAuth"+labTemplates] {
		a[k] = v
	}
	a["mspki-enrollment-flag"] = [][]byte{[]byte("1073741856")} // 0x40000020
	tmpl, err := Parse("CN=LabUserAuth"+labTemplates, a)
	if err != nil {
		t.Fatal(err)
	}
	if no := Unsupported(tmpl); len(no) != 1 || !strings.Contains(no[0], "0x40000000") || !strings.Contains(no[0], "msPKI-Enrollment-Flag") {
		t.Errorf("unsupported: %v", no)
	}
}

func TestTheProfileIsComplete(t *testing.T) {
	f := recordedForest(t)
	in := f.as(t, "alice", "Alice Archer", "LabUserSMIME", "SMIME Users")
	in.Request.ArchivedKey = true
	in.Request.Subject = mustName(t, "CN", "Administrator") // must not be looked at
	in.Request.Extensions = []Extension{{OID: oidSAN, Value: []byte{0x30, 0}}, {OID: oidSIDExtension, Value: []byte("S-1-5-21-1-2-3-500")},
		{OID: oidAppPolicies, Value: oidSequence([]string{oidClientAuth}, true)}, {OID: oidEKU, Value: oidSequence([]string{oidAnyPurpose}, false)}}
	d := Decide(in)
	if d.Outcome != Allow || !d.Archive {
		t.Fatalf("%+v", d)
	}
	p := d.Profile
	if want := "E=alice@lab.test,CN=Alice Archer,CN=Users,DC=lab,DC=test"; p.SubjectText != want {
		t.Errorf("subject %q, want %q", p.SubjectText, want)
	}
	want := []string{oidSAN, oidSIDExtension, oidTemplateInfo, oidEKU, oidKeyUsage, oidAppPolicies, oidSMIMECaps}
	var got []string
	for _, e := range p.Extensions {
		got = append(got, e.OID)
		if e.Critical != (e.OID == oidKeyUsage) {
			t.Errorf("extension %s critical: %t", e.OID, e.Critical)
		}
		if strings.Contains(string(e.Value), "1-2-3-500") {
			t.Error("the SID of the request was used")
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("extensions %v, want %v", got, want)
	}
	if !slices.Equal(p.SANs, []string{"email:alice@lab.test"}) || !slices.Equal(p.KeyUsage, []string{"digitalSignature", "keyEncipherment"}) {
		t.Errorf("SANs %v, key usage %v", p.SANs, p.KeyUsage)
	}
	if !p.NotAfter.Equal(f.now.Add(365*24*time.Hour-clockSkew)) || !p.NotBefore.Equal(f.now.Add(-clockSkew)) {
		t.Errorf("valid from %s to %s", p.NotBefore, p.NotAfter)
	}
	var seq asn1.RawValue
	if rest, err := asn1.Unmarshal(p.Subject, &seq); err != nil || len(rest) > 0 {
		t.Errorf("subject: %v", err)
	}
}

// A client that is told to renew six weeks before the end of a certificate of a month would renew all the time.
func TestTheTimeOfRenewalIsCutWithTheValidity(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	tmpl := &Template{Validity: 365 * day, Overlap: 42 * day}
	for name, c := range map[string]struct {
		end               time.Time
		validity, overlap time.Duration
	}{
		"a CA without an end": {time.Time{}, 365 * day, 42 * day},
		"a young CA":          {now.Add(1000 * day), 365 * day, 42 * day},
		"a CA with a year":    {now.Add(365 * day), 365 * day, 42 * day},
		"a CA with a month":   {now.Add(73 * day / 2), 73 * day / 2, 21 * day / 5},
		"a CA that is at end": {now, 0, 0},
		"a CA that has ended": {now.Add(-day), 0, 0},
	} {
		if validity, overlap := Periods(tmpl, c.end, now); validity != c.validity || (overlap-c.overlap).Abs() > time.Second {
			t.Errorf("%s: %v and %v, want %v and %v", name, validity, overlap, c.validity, c.overlap)
		}
	}
}

func TestValidityEndsWithTheCA(t *testing.T) {
	f := recordedForest(t)
	in := f.as(t, "alice", "Alice Archer", "LabUserAuth")
	in.Authority.NotAfter = f.now.Add(24 * time.Hour)
	if d := Decide(in); !d.Profile.NotAfter.Equal(in.Authority.NotAfter) {
		t.Errorf("ends %s, the CA ends %s", d.Profile.NotAfter, in.Authority.NotAfter)
	}
	in.Authority.NotAfter = f.now.Add(-time.Hour)
	if d := Decide(in); d.Outcome != Deny {
		t.Errorf("an expired CA may issue: %+v", d.Checks)
	}
}

func TestMalformedTemplatesAreErrorsThatNameTheAttribute(t *testing.T) {
	f := recordedForest(t)
	for attribute, value := range map[string]string{
		"pKIExpirationPeriod": "short", "pKIKeyUsage": "", "msPKI-Minimal-Key-Size": "-5", "revision": "x", "pKIExtendedKeyUsage": "1.2.x",
		"msPKI-Cert-Template-OID": "9.9", "nTSecurityDescriptor": "junk", "msPKI-RA-Signature": "99999999999",
	} {
		t.Run(attribute, func(t *testing.T) {
			a := Attributes{}
			for k, v := range f.ldif["CN=LabUserSMIME"+labTemplates] {
				a[k] = v
			}
			a[strings.ToLower(attribute)] = [][]byte{[]byte(value)}
			if _, err := Parse("CN=LabUserSMIME"+labTemplates, a); err == nil || !strings.Contains(err.Error(), attribute) {
				t.Errorf("error %v, want one that names %s", err, attribute)
			}
		})
	}
}

func TestNamesThatDoNotFitACertificateAreErrors(t *testing.T) {
	for name, rdn := range map[string]RDN{
		"too long":       part("CN", strings.Repeat("x", 65)),
		"empty":          part("OU", ""),
		"unknown type":   part("favouriteDrink", "tea"),
		"not ASCII":      part("DC", "bücher"),
		"broken UTF-8":   part("CN", "\xff"),
		"long country":   part("C", "GER"),
		"control octets": part("E", "a\x00b@lab.test"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := encodeName([][]RDN{{rdn}}); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, text, err := encodeName([][]RDN{{part("CN", `Müller, "Jo"`)}}); err != nil || text != `CN=Müller\, \"Jo\"` {
		t.Errorf("%q, %v", text, err)
	}
}

func TestRightsForAPolicyReply(t *testing.T) {
	f := recordedForest(t)
	tmpl, service := f.snapshot.TemplateByName("LabUserSMIME"), f.snapshot.Services[0]
	member, other := f.as(t, "alice", "Alice Archer", "", "SMIME Users").Caller, f.as(t, "bob", "Bob Baker", "").Caller
	if enroll, auto := Rights(tmpl, service, member); !enroll || !auto {
		t.Errorf("a member has enroll %t, autoenroll %t", enroll, auto)
	}
	if enroll, auto := Rights(tmpl, service, other); enroll || auto {
		t.Errorf("another account has enroll %t, autoenroll %t", enroll, auto)
	}
}
