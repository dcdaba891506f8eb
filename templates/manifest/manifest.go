// Package manifest is certificate templates as text that people keep in a repository: one YAML document per template.
//
// Export writes what the directory holds as YAML, Parse reads YAML, and NewPlan compares the two and lists the operations
// that make the directory say what the YAML says. Only keys that a document has are compared and written; a key that is
// empty ([] or "") clears its attribute. Everything of a template can be written: what the readable keys cannot express
// without loss is below the key "attributes", octet by octet.
//
// The package does no input or output: values in, values out.
package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Object is a pKICertificateTemplate object with all its attributes, nTSecurityDescriptor included.
type Object struct {
	DN         string
	Attributes templates.Attributes
}

// Name is the template's cn.
func (o *Object) Name() string { return o.Attributes.First("cn") }

// descriptor reads nTSecurityDescriptor; nil where it is missing.
func (o *Object) descriptor() (*security.Descriptor, error) {
	if o == nil || len(o.Attributes[attrDescriptor]) == 0 {
		return nil, nil
	}
	d, err := security.ParseDescriptor(o.Attributes[attrDescriptor][0])
	if err != nil {
		return nil, fmt.Errorf("template %q: %w", o.Name(), err)
	}
	return d, nil
}

// Service is a pKIEnrollmentService object: a CA, and the templates that it offers.
type Service struct {
	DN, Name  string
	Templates []string
}

// OIDObject is an msPKI-Enterprise-Oid object ([MS-CRTD] 2.29 ff.).
type OIDObject struct {
	DN, OID, DisplayName string
	Flags                string // "1" for that of a template
}

// Forest is what the directory says about certificate templates at one moment.
type Forest struct {
	ConfigDN  string // of the configuration naming context
	OIDPrefix string // of the forest's OIDs: msPKI-Cert-Template-OID of CN=OID; may be empty
	Templates []Object
	Services  []Service
	OIDs      []OIDObject
	Names     map[security.SID]string // of those who are in the access control lists; a SID without a name is shown as such
}

// Template finds a template by its cn, ignoring case as the directory does; nil where there is none.
func (f *Forest) Template(name string) *Object {
	for i := range f.Templates {
		if strings.EqualFold(f.Templates[i].Name(), name) {
			return &f.Templates[i]
		}
	}
	return nil
}

// OIDName is the display name of a registered object identifier, or "".
func (f *Forest) OIDName(oid string) string {
	for i := range f.OIDs {
		if f.OIDs[i].OID == oid {
			return f.OIDs[i].DisplayName
		}
	}
	return ""
}

// Trustees lists the SIDs of owners, groups and access control entries of all templates.
func (f *Forest) Trustees() []security.SID {
	var out []security.SID
	for i := range f.Templates {
		d, err := f.Templates[i].descriptor()
		if err != nil || d == nil {
			continue // export and plan say so
		}
		out = append(out, d.Owner, d.Group)
		for j := range d.DACL {
			out = append(out, d.DACL[j].SID)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > 0 && out[0] == "" {
		out = out[1:]
	}
	return out
}

// offeredBy lists the CAs that offer a template.
func (f *Forest) offeredBy(name string) []string {
	out := []string{}
	for _, s := range f.Services {
		if s.value(name) != "" {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

// value is the value of certificateTemplates that stands for a template, as the CA spells it.
func (s *Service) value(name string) string {
	for _, v := range s.Templates {
		if strings.EqualFold(v, name) {
			return v
		}
	}
	return ""
}

const (
	attrDescriptor = "ntsecuritydescriptor"
	attrOID        = "mspki-cert-template-oid"
	attrMajor      = "revision"
	attrMinor      = "mspki-template-minor-revision"
	attrSchema     = "mspki-template-schema-version"
	attrDisplay    = "displayname"
)

// owned are the attributes that belong to the directory: it sets them, or they identify the object.
var owned = []string{"objectclass", "cn", "name", "distinguishedname", "objectguid", "objectcategory", "whencreated", "whenchanged",
	"usncreated", "usnchanged", "instancetype", "dscorepropagationdata", "showinadvancedviewonly", attrDescriptor}

// Error is a mistake in a document.
type Error struct {
	File         string
	Line, Column int
	Reason       string
}

// Error has file, line and column.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Reason)
}

// position is where something stands in a document.
type position struct{ line, column int }

// Manifest is one document: what a template should be.
type Manifest struct {
	Name string
	File string

	want    templates.Attributes // by attribute in lower case: the values that it should have; none for "cleared"
	version *version
	owner   *security.SID
	group   *security.SID
	inherit *bool
	acl     *acl
	offered *[]string
	at      map[string]position // of each key, and of each attribute that a key writes
}

// version is a template's version. Unless it is exact, a higher one in the directory is left alone.
type version struct {
	major, minor int
	exact        bool
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

// errorAt is an error at a key or an attribute, or else at the beginning of the document.
func (m *Manifest) errorAt(key, format string, args ...any) *Error {
	p, ok := m.at[key]
	if !ok {
		p = m.at[keyTemplate]
	}
	return &Error{m.File, p.line, p.column, fmt.Sprintf(format, args...)}
}
