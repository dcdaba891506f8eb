package ldapsync

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/manifest"
)

// This file writes certificate templates, their OIDs, and which CAs offer them, as an administrator who brings credentials
// of his own. The gateway never does.

// ErrChanged says that somebody else has changed an object since it was read; nothing was written to it.
var ErrChanged = errors.New("somebody else has changed it since it was read; make a new plan and look at it again")

// ManifestForest reads all that manifests are compared with. Unlike a snapshot it has every attribute, understood or not.
func (d *Directory) ManifestForest(ctx context.Context) (*manifest.Forest, error) {
	s, err := d.connected(ctx)
	if err != nil {
		return nil, err
	}
	f, err := s.manifestForest()
	d.drop(s, err)
	if err != nil {
		return nil, err
	}
	f.Names = d.NamesOf(ctx, f.Trustees())
	return f, nil
}

func sdFlags(parts int) ldap.Control {
	return &ldap.ControlMicrosoftSDFlags{Criticality: true, ControlValue: int32(parts)}
}

// everything are all attributes that a template stores; the descriptor comes only when it is asked for by name.
func everything() []string { return []string{"*", "nTSecurityDescriptor"} }

func (s *session) manifestForest() (*manifest.Forest, error) {
	entries, err := s.search(pkiBase(s.root.configDN), ldap.ScopeWholeSubtree,
		"(|(objectClass=pKICertificateTemplate)(objectClass=pKIEnrollmentService)(objectClass=msPKI-Enterprise-Oid))", everything(), sdFlags(allButSACL))
	if err != nil {
		return nil, err
	}
	f := &manifest.Forest{ConfigDN: s.root.configDN}
	for _, o := range objectsOf(entries) {
		a := o.attributes
		switch {
		case hasClass(a, "pKICertificateTemplate"):
			if len(a["ntsecuritydescriptor"]) == 0 {
				return nil, fmt.Errorf("template %q: nTSecurityDescriptor is missing: the account may not read it", a.First("cn"))
			}
			f.Templates = append(f.Templates, manifest.Object{DN: o.dn, Attributes: a})
		case hasClass(a, "pKIEnrollmentService"):
			f.Services = append(f.Services, manifest.Service{DN: o.dn, Name: a.First("cn"), Templates: a.Strings("certificateTemplates")})
		case strings.EqualFold(a.First("cn"), "OID"):
			f.OIDPrefix = a.First("msPKI-Cert-Template-OID")
		default:
			f.OIDs = append(f.OIDs, manifest.OIDObject{DN: o.dn, OID: a.First("msPKI-Cert-Template-OID"),
				DisplayName: a.First("displayName"), Flags: a.First("flags")})
		}
	}
	return f, nil
}

// FreshOID makes the random parts of a new template's OID.
func FreshOID() (manifest.OID, error) {
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		return manifest.OID{}, fmt.Errorf("a random OID: %w", err)
	}
	arc := func(b []byte) uint32 { return binary.LittleEndian.Uint32(b)&0xFFFFFF + 1 }
	return manifest.OID{Arcs: [2]uint32{arc(b[:]), arc(b[4:])}, Digits: strings.ToUpper(hex.EncodeToString(b[8:]))}, nil
}

// Apply does what a plan lists, in its order, until something fails. It returns how many differences are done. The one
// after them failed, and was not written, unless the error says that the connection was lost; the plan of the next run has
// what is left.
func (d *Directory) Apply(ctx context.Context, p *manifest.Plan) (done int, err error) {
	for i, difference := range p.Differences {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		s, err := d.connected(ctx)
		if err == nil {
			err = s.write(difference.Operation)
			d.drop(s, err)
		}
		if err != nil {
			return i, fmt.Errorf("%s: %w", difference.Object, err)
		}
	}
	return len(p.Differences), nil
}

// write does one operation: all of it, or nothing.
func (s *session) write(o manifest.Operation) error {
	var err error
	if o.Add == nil && o.Expect != nil {
		if err := s.unchanged(o.Expect); err != nil {
			return err
		}
	}
	switch {
	case o.Add != nil:
		err = s.add(o)
	case o.Delete:
		err = s.ldap.Del(ldap.NewDelRequest(o.DN, nil))
	default:
		err = s.modify(o)
	}
	return explainWrite(err)
}

func (s *session) add(o manifest.Operation) error {
	var controls []ldap.Control
	if o.Parts != 0 {
		controls = append(controls, sdFlags(o.Parts))
	}
	request := ldap.NewAddRequest(o.DN, controls)
	for _, name := range slices.Sorted(maps.Keys(o.Add)) {
		request.Attribute(name, o.Add.Strings(name))
	}
	return s.ldap.Add(request)
}

// modify takes each old value away by name, so that the directory refuses where it is no longer there. A descriptor has no
// such form: it is compared just before.
func (s *session) modify(o manifest.Operation) error {
	var controls []ldap.Control
	if o.Descriptor != nil {
		controls = append(controls, sdFlags(o.Parts))
	}
	request := ldap.NewModifyRequest(o.DN, controls)
	for _, m := range o.Modifications {
		values := templates.Attributes{"old": m.Old, "new": m.New}
		if len(m.Old) > 0 {
			request.Delete(m.Attribute, values.Strings("old"))
		}
		if len(m.New) > 0 {
			request.Add(m.Attribute, values.Strings("new"))
		}
	}
	if o.Descriptor != nil {
		request.Replace("nTSecurityDescriptor", []string{string(o.Descriptor)})
	}
	return s.ldap.Modify(request)
}

// unchanged compares an object with what it was when the plan was made.
func (s *session) unchanged(was *manifest.Object) error {
	entries, err := s.search(was.DN, ldap.ScopeBaseObject, "(objectClass=*)", everything(), sdFlags(allButSACL))
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) || err == nil && len(entries) != 1 {
		return fmt.Errorf("it is gone: %w", ErrChanged)
	}
	if err != nil {
		return err
	}
	now := attributesOf(entries[0])
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if name != "dscorepropagationdata" && !slices.EqualFunc(now[name], was.Attributes[name], bytes.Equal) {
			return fmt.Errorf("attribute %s: %w", name, ErrChanged)
		}
	}
	for name := range was.Attributes {
		if _, there := now[name]; !there {
			return fmt.Errorf("attribute %s: %w", name, ErrChanged)
		}
	}
	return nil
}

// explainWrite finds words for a refusal.
func explainWrite(err error) error {
	switch {
	case err == nil:
		return nil
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchAttribute, ldap.LDAPResultAttributeOrValueExists, ldap.LDAPResultEntryAlreadyExists, ldap.LDAPResultNoSuchObject):
		return fmt.Errorf("%w (%w)", ErrChanged, err)
	case ldap.IsErrorWithCode(err, ldap.LDAPResultInsufficientAccessRights):
		return fmt.Errorf("the account may not write it: name one that may with --bind-principal, such as a member of Enterprise Admins (%w)", err)
	}
	if lost := markLost(err); errors.Is(lost, errConnection) {
		return fmt.Errorf("it is unknown whether this was written, a new plan shows it: %w", lost)
	}
	return err
}
