package native

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates/manifest"
)

// LDIF is the plan as change records (RFC 2849), for ldapmodify and, where no access control list changes, ldifde.
func LDIF(p *Plan) string {
	var b strings.Builder
	b.WriteString("version: 1\n")
	for i := range p.Differences {
		o := &p.Differences[i].Operation
		b.WriteString("\n")
		line(&b, "dn", []byte(o.DN))
		switch {
		case o.Add != nil:
			b.WriteString("changetype: add\n")
			for _, name := range ordered(o.Add) {
				for _, v := range o.Add[name] {
					line(&b, spelled(name), v)
				}
			}
		case o.Delete:
			b.WriteString("changetype: delete\n")
		default:
			modifyRecord(&b, o)
		}
	}
	return b.String()
}

// ordered are the attributes of a new object, its class first.
func ordered(a map[string][][]byte) []string {
	names := slices.Sorted(maps.Keys(a))
	i := slices.Index(names, attrClass)
	return append([]string{attrClass}, slices.Delete(names, i, i+1)...)
}

func modifyRecord(b *strings.Builder, o *manifest.Operation) {
	if o.Descriptor != nil { // the access control list alone: LDAP_SERVER_SD_FLAGS_OID, {4}
		b.WriteString("control: 1.2.840.113556.1.4.801 true:: MAMCAQQ=\n")
	}
	b.WriteString("changetype: modify\n")
	part := func(what, name string, list [][]byte) {
		if len(list) == 0 {
			return
		}
		b.WriteString(what + ": " + spelled(name) + "\n")
		for _, v := range list {
			line(b, spelled(name), v)
		}
		b.WriteString("-\n")
	}
	for _, m := range o.Modifications {
		part("delete", m.Attribute, m.Old)
		part("add", m.Attribute, m.New)
	}
	if o.Descriptor != nil {
		part("replace", attrDescriptor, [][]byte{o.Descriptor})
	}
}

// line writes one value, in base64 where it is not plain text, folded.
func line(b *strings.Builder, name string, value []byte) {
	text := name + ": " + string(value)
	safe := len(value) > 0 && !strings.ContainsAny(string(value[:1]), " :<") && value[len(value)-1] != ' '
	for _, c := range value {
		safe = safe && c >= 0x20 && c < 0x7F
	}
	if !safe {
		text = name + ":: " + base64.StdEncoding.EncodeToString(value)
	}
	const width = 76
	for len(text) > width {
		b.WriteString(text[:width] + "\n")
		text = " " + text[width:]
	}
	b.WriteString(text + "\n")
}

// Script is the plan as a PowerShell script for an administrator of the forest: certutil for certificates and revocation
// lists, ADSI for the rest, dsacls for rights.
func Script(p *Plan) string {
	b := &strings.Builder{}
	b.WriteString("# As a member of Enterprise Admins, in PowerShell on a domain member.\n$ErrorActionPreference = 'Stop'\n" +
		"function Publish($what, $base64, $to) { $f = Join-Path $env:TEMP $what; [IO.File]::WriteAllBytes($f, [Convert]::FromBase64String($base64)); certutil -dspublish -f $f @to }\n")
	for i := range p.Differences {
		d := &p.Differences[i]
		fmt.Fprintf(b, "\n# %s\n", strings.Map(printable, d.Object))
		store := map[string]string{KindRoot: "RootCA", KindAIA: "SubCA", KindNTAuth: "NTAuthCA"}[d.Kind]
		switch added := newValues(&d.Operation); {
		case d.Delete:
			fmt.Fprintf(b, "([ADSI]%s).DeleteTree()\n", path(d.Object))
		case store != "" && len(added[attrCertificate]) > 0 && !has(added[attrCertificate], nothing):
			for _, v := range added[attrCertificate] {
				fmt.Fprintf(b, "Publish 'ca.cer' %s @(%s)\n", octets(v), quote(store))
			}
		case d.Kind == KindCDP:
			host := strings.TrimPrefix(strings.Split(parent(d.Object), ",")[0], "CN=")
			fmt.Fprintf(b, "Publish 'ca.crl' %s @(%s, %s)\n", octets(added[attrCRL][0]), quote(host), quote(d.Name))
		default:
			adsi(b, d)
		}
	}
	return b.String()
}

// newValues are what an operation adds.
func newValues(o *manifest.Operation) map[string][][]byte {
	if o.Add != nil {
		return o.Add
	}
	out := map[string][][]byte{}
	for _, m := range o.Modifications {
		out[m.Attribute] = m.New
	}
	return out
}

// adsi writes one object. The numbers of PutEx are ADS_PROPERTY_UPDATE, _APPEND and _DELETE.
func adsi(b *strings.Builder, d *manifest.Difference) {
	o := &d.Operation
	if o.Add != nil {
		rdn := strings.TrimSuffix(d.Object, ","+parent(d.Object))
		fmt.Fprintf(b, "$o = ([ADSI]%s).Create(%s, %s)\n", path(parent(d.Object)), quote(string(o.Add[attrClass][0])), quote(slashes(rdn)))
		for _, name := range ordered(o.Add) {
			if name != attrClass && name != attrDescriptor {
				fmt.Fprintf(b, "$o.PutEx(2, %s, @(%s))\n", quote(spelled(name)), list(name, o.Add[name]))
			}
		}
	} else {
		fmt.Fprintf(b, "$o = [ADSI]%s\n", path(d.Object))
	}
	for _, m := range o.Modifications {
		if len(m.Old) > 0 && len(m.New) > 0 && !has(m.Old, nothing) {
			fmt.Fprintf(b, "$o.PutEx(2, %s, @(%s))\n", quote(spelled(m.Attribute)), list(m.Attribute, m.New))
			continue
		}
		if len(m.Old) > 0 {
			fmt.Fprintf(b, "$o.PutEx(4, %s, @(%s)); $o.SetInfo()\n", quote(spelled(m.Attribute)), list(m.Attribute, m.Old))
		}
		if len(m.New) > 0 {
			fmt.Fprintf(b, "$o.PutEx(3, %s, @(%s))\n", quote(spelled(m.Attribute)), list(m.Attribute, m.New))
		}
	}
	b.WriteString("$o.SetInfo()\n")
	for _, c := range d.Changes {
		for _, entry := range c.New {
			if who, ok := strings.CutPrefix(entry, "allow enroll for "); ok && c.Key == "acl" {
				fmt.Fprintf(b, "dsacls %s /G %s\n", quote(d.Object), quote(who+":CA;Enroll"))
			}
		}
	}
}

func list(name string, values [][]byte) string {
	out := make([]string, len(values))
	for i, v := range values {
		if name == attrCertificate || name == attrCRL || name == attrARL {
			out[i] = "[Convert]::FromBase64String(" + octets(v) + ")"
			if len(values) == 1 {
				out[i] = "," + out[i] // or PowerShell takes the octets for the values
			}
		} else {
			out[i] = quote(string(v))
		}
	}
	return strings.Join(out, ", ")
}

func octets(v []byte) string { return "'" + base64.StdEncoding.EncodeToString(v) + "'" }

// quote makes a string of PowerShell, in which nothing is replaced. The quotation marks of typography end one, too.
func quote(text string) string {
	var b strings.Builder
	for _, r := range text {
		if strings.ContainsRune("'\u2018\u2019\u201a\u201b", r) {
			b.WriteRune(r)
		}
		b.WriteRune(r)
	}
	text = "'" + b.String() + "'"
	if lines := strings.ReplaceAll(text, "\n", "' + \"`n\" + '"); lines != text { // whatever the line endings of the script become
		return "(" + lines + ")"
	}
	return text
}

// path is the address of an object for ADSI.
func path(dn string) string { return quote("LDAP://" + slashes(dn)) }

// slashes escapes what separates the parts of an address.
func slashes(dn string) string { return strings.ReplaceAll(dn, "/", `\/`) }

func printable(r rune) rune {
	if r < 0x20 || r == 0x7F {
		return '?'
	}
	return r
}
