package ldapsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/security"
)

// This file writes certificates: into userCertificate of accounts ([MS-WCCE] 3.2.2.1.5) and of the CAs' objects in the KRA
// container ([MS-WCCE] 3.2.2.1.4). Nothing else is written, and values are added and deleted one by one: what others
// have there stays.

// RightError says that the account may not write.
type RightError struct {
	DN    string // of the object, or of the container in which one was to be created
	KRA   bool
	cause error
}

func (e *RightError) Error() string {
	return fmt.Sprintf("no right to write userCertificate of %q: %v", e.DN, e.cause)
}

// Unwrap returns the directory's answer.
func (e *RightError) Unwrap() error { return e.cause }

// ErrNoAccount says that nobody has the SID.
var ErrNoAccount = errors.New("the account does not exist")

// Reconnect gives the connection up: the next one is made with a new ticket, and so with the groups of that moment.
func (d *Directory) Reconnect() {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s != nil {
		go s.close()
	}
}

// ChangeCertificates adds values to userCertificate of the account with a SID, wherever it is by now, and deletes values.
// One that is there already, or gone already, is as good as written. Its errors are *RightError where a right is missing,
// ErrNoAccount where there is no such account.
func (d *Directory) ChangeCertificates(ctx context.Context, sid security.SID, add, remove [][]byte) error {
	return d.do(ctx, func(s *session) error {
		found := map[security.SID]Account{}
		if err := s.accounts([]security.SID{sid}, nil, found); err != nil {
			return err
		}
		account := found[sid]
		switch account.State {
		case AccountUnknown:
			return fmt.Errorf("account %s: %s", sid, account.Why)
		case AccountDeleted:
			return fmt.Errorf("account %s: %w: %s", sid, ErrNoAccount, account.Why)
		}
		return s.changeCertificates(account.DN, add, remove)
	})
}

// changeCertificates adds before it deletes: a reader finds the old certificate or the new one, never none.
func (s *session) changeCertificates(dn string, add, remove [][]byte) error {
	for _, value := range add {
		request := ldap.NewModifyRequest(dn, nil)
		request.Add(attrUserCertificate, []string{string(value)})
		if err := s.ldap.Modify(request); err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultAttributeOrValueExists) {
			return writing(dn, err)
		}
	}
	for _, value := range remove {
		request := ldap.NewModifyRequest(dn, nil)
		request.Delete(attrUserCertificate, []string{string(value)})
		if err := s.ldap.Modify(request); err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchAttribute) {
			return writing(dn, err)
		}
	}
	return nil
}

// writing finds words for a refusal.
func writing(dn string, err error) error {
	if ldap.IsErrorWithCode(err, ldap.LDAPResultInsufficientAccessRights) {
		return &RightError{DN: dn, cause: err}
	}
	return fmt.Errorf("writing userCertificate of %q: %w", dn, withReferral(markLost(err)))
}

func (s *session) kraContainer() string { return "CN=KRA," + pkiBase(s.root.configDN) }

// kraObject is the object of a CA, by its sanitized name. Without one there are no values.
func (s *session) kraObject(name string) (dn string, exists bool, values [][]byte, err error) {
	dn = "CN=" + ldap.EscapeDN(name) + "," + s.kraContainer()
	entries, err := s.search(dn, ldap.ScopeBaseObject, "(objectClass=*)", []string{attrUserCertificate})
	if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) || err == nil && len(entries) == 0 {
		return dn, false, nil, nil
	}
	if err != nil {
		return dn, false, nil, err
	}
	return dn, true, attributesOf(entries[0])[strings.ToLower(attrUserCertificate)], nil
}

// KRACertificates returns what is in userCertificate of a CA's object in the KRA container; name is the CA's sanitized short
// name ([MS-WCCE] 3.1.1.4.1.1).
func (d *Directory) KRACertificates(ctx context.Context, name string) (values [][]byte, err error) {
	err = d.do(ctx, func(s *session) error {
		_, _, values, err = s.kraObject(name)
		return err
	})
	return values, err
}

// KRAContainer returns the values of userCertificate of every object in the KRA container (class msPKI-PrivateKeyRecoveryAgent,
// [MS-WCCE] 3.2.2.1.4), by the object's name: whatever was written there, by whom ever.
func (d *Directory) KRAContainer(ctx context.Context) (map[string][][]byte, error) {
	out := map[string][][]byte{}
	err := d.do(ctx, func(s *session) error {
		entries, err := s.search(s.kraContainer(), ldap.ScopeSingleLevel, "(objectClass=msPKI-PrivateKeyRecoveryAgent)", []string{"cn", attrUserCertificate})
		if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			return nil
		}
		for _, e := range entries {
			out[e.GetAttributeValue("cn")] = attributesOf(e)[strings.ToLower(attrUserCertificate)]
		}
		return err
	})
	return out, err
}

// ChangeKRACertificates is ChangeCertificates for a CA's object in the KRA container, which is created where it is missing.
// Its class demands a certificate ([MS-ADSC] msPKI-PrivateKeyRecoveryAgent), so that the last one is never taken away.
func (d *Directory) ChangeKRACertificates(ctx context.Context, name string, add, remove [][]byte) error {
	err := d.do(ctx, func(s *session) error {
		dn, exists, values, err := s.kraObject(name)
		if err != nil {
			return err
		}
		if !exists {
			if len(add) == 0 {
				return nil
			}
			request := ldap.NewAddRequest(dn, nil)
			request.Attribute("objectClass", []string{"msPKI-PrivateKeyRecoveryAgent"})
			request.Attribute(attrUserCertificate, []string{string(add[0])})
			err := s.ldap.Add(request)
			if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultEntryAlreadyExists) {
				return writing(dn, err)
			}
		}
		stays := func(value []byte) bool {
			return !slices.ContainsFunc(remove, func(r []byte) bool { return bytes.Equal(r, value) })
		}
		if len(remove) > 0 && !slices.ContainsFunc(slices.Concat(values, add), stays) {
			remove = remove[:len(remove)-1]
		}
		return s.changeCertificates(dn, add, remove)
	})
	if right, ok := errors.AsType[*RightError](err); ok {
		right.KRA = true
	}
	return err
}
