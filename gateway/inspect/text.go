package inspect

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// maxShown is how much of one value Text prints; the JSON form has all of it.
const maxShown = 160

// Text prints the report for a person, in sections of aligned lines.
func (r *Report) Text(w io.Writer) error {
	p := &printer{tab: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	p.line("Kind", r.Kind)
	p.line("Input", r.Input)
	p.line("Problem", r.Problem)
	if r.Kind != KindKeyBlob && r.Kind != KindEnveloped {
		p.line("Subject", orDefault(r.Subject, "(empty: the directory supplies it)"))
	}
	if k := r.PublicKey; k != nil {
		p.line("Public key", fmt.Sprintf("%s, %d bits", k.Algorithm, k.Bits))
	}
	p.line("Key blob", r.KeyBlobForm)
	p.line("Signature", r.SignatureAlgorithm)
	if v := r.Possession; v != nil {
		p.line("Possession", verdict(v.Verified, v.Error))
	}
	if r.Template != nil {
		p.line("Template", r.Template.text())
	}
	r.printResponse(p)
	r.printCertificates(p)
	r.printSigners(p)
	r.printArchivedKey(p)
	for i, a := range r.Attributes {
		p.section("Attributes", i)
		p.line("  "+orDefault(a.Name, a.OID), shorten(a.Value)+"  ("+a.Where+")")
	}
	for i, e := range r.Extensions {
		p.section("Extensions", i)
		critical := ""
		if e.Critical {
			critical = "  (critical)"
		}
		p.line("  "+orDefault(e.Name, e.OID), shorten(e.Value)+critical)
	}
	return p.flush()
}

func (r *Report) printResponse(p *printer) {
	s := r.Response
	if s == nil {
		return
	}
	p.section("Response", 0)
	p.line("  Status", fmt.Sprintf("%s (%d)", s.State, s.Status))
	p.line("  Text", s.Text)
	p.line("  Request", s.RequestID)
	if s.HashValid != nil {
		p.line("  Certificate hash", s.CertificateHash+", "+choose(*s.HashValid, "of the certificate below", "of no enclosed certificate"))
	}
	p.line("  Archived key hash", s.ArchivedHash)
}

func (r *Report) printCertificates(p *printer) {
	show := func(title string, c *Certificate) {
		p.section(title, 0)
		p.line("  Subject", c.Subject)
		p.line("  Issuer", c.Issuer)
		p.line("  Serial", c.Serial)
		p.line("  Valid", c.NotBefore.UTC().Format(time.RFC3339)+" to "+c.NotAfter.UTC().Format(time.RFC3339))
		p.line("  SHA-1", c.SHA1)
	}
	if r.Certificate != nil {
		show("Certificate", r.Certificate)
	}
	if r.Renewal != nil {
		show("Renews", r.Renewal)
	}
	for i, c := range r.Chain {
		p.section("Enclosed certificates", i)
		p.line("  "+c.Serial, c.Subject)
	}
}

func (r *Report) printSigners(p *printer) {
	for i, s := range r.Signers {
		p.section("Signers", i)
		who := "key identifier " + s.KeyID
		if s.KeyID == "" {
			who = s.Issuer + ", serial " + s.Serial
		}
		p.line("  "+s.Role, fmt.Sprintf("%s, %s, %s", verdict(s.Verified, s.Error), s.Digest, who))
	}
}

func (r *Report) printArchivedKey(p *printer) {
	a := r.ArchivedKey
	if !a.Present {
		return
	}
	p.section("Archived key", 0)
	p.line("  Cipher", a.Cipher)
	for _, to := range a.Recipients {
		who := "key identifier " + to.KeyID
		if to.KeyID == "" {
			who = to.Issuer + ", serial " + to.Serial
		}
		p.line("  Recipient", who+", by "+to.Transport)
	}
	if a.HashValid != nil {
		p.line("  Hash", choose(*a.HashValid, "valid", "NOT VALID"))
	}
	switch {
	case a.Opened:
		p.line("  Opened", fmt.Sprintf("%s, %d bits, %s", a.Algorithm, a.Bits, a.Form))
	case a.Error == "":
		p.line("  Opened", "no: no exchange key was given")
	default:
		p.line("  Opened", "no: "+a.Error)
	}
	if a.MatchesRequest != nil {
		whose := choose(r.Kind == KindRecovery, "certificate", "request")
		p.line("  Matches", choose(*a.MatchesRequest, "yes, it is the private key of the "+whose, "NO: it is not the private key of the "+whose))
	}
}

// printer writes aligned lines and keeps the first error.
type printer struct {
	tab *tabwriter.Writer
	err error
}

// line prints one name and value; an empty value is left out.
func (p *printer) line(name, value string) {
	if value != "" && p.err == nil {
		_, p.err = fmt.Fprintf(p.tab, "%s\t%s\n", name, value)
	}
}

// section begins a block before its first line.
func (p *printer) section(title string, index int) {
	if index == 0 && p.err == nil {
		_, p.err = fmt.Fprintf(p.tab, "\n%s\n", title)
	}
}

func (p *printer) flush() error {
	if p.err != nil {
		return p.err
	}
	return p.tab.Flush()
}

func verdict(good bool, why string) string {
	if good {
		return "verified"
	}
	return "NOT VERIFIED (" + why + ")"
}

func choose(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

func orDefault(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// shorten cuts a long value and says how long it is. It counts characters, so that none is torn apart.
func shorten(text string) string {
	text = strings.TrimSpace(text)
	if runes := []rune(text); len(runes) > maxShown {
		return fmt.Sprintf("%s… (%d characters)", string(runes[:maxShown]), len(runes))
	}
	return text
}
