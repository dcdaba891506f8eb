// Package pkcs11 uses keys in PKCS#11 tokens: hardware security modules, smart cards, SoftHSM. Tokens and keys are named by
// URIs (RFC 7512):
//
//	pkcs11:token=HSM;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/enrollgate/pin
//
// What calls the token's library needs cgo; without it Open says so.
package pkcs11

import (
	"errors"
	"fmt"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// IsURI tells whether the name of a key is a PKCS#11 URI rather than a file.
func IsURI(name string) bool { return strings.HasPrefix(name, "pkcs11:") }

// target is what a URI names.
type target struct {
	module        string // path of the token's library
	label, serial string // of the token
	object        string // label of the key
	id            []byte // of the key
	pin           string
}

// parse reads a URI. pin is for those that name no pin-source. A PIN in the URI itself is refused: URIs are in configuration
// files, process lists and logs.
func parse(text, pin string) (*target, error) {
	uri := pkcs11uri.New()
	uri.SetAllowAnyModule(true)
	if err := uri.Parse(text); err != nil {
		return nil, err
	}
	if _, ok := uri.GetQueryAttribute("pin-value", false); ok {
		return nil, errors.New("the PIN is in the URI: put it into a file and name that with pin-source=file:/PATH")
	}
	t := &target{pin: pin}
	var err error
	if t.module, err = uri.GetModule(); err != nil {
		return nil, fmt.Errorf("name the token's library with ?module-path=/PATH/LIBRARY.so: %w", err)
	}
	t.label, _ = uri.GetPathAttribute("token", false)
	t.serial, _ = uri.GetPathAttribute("serial", false)
	if t.label == "" && t.serial == "" {
		return nil, errors.New("name the token with token=LABEL or serial=NUMBER")
	}
	t.object, _ = uri.GetPathAttribute("object", false)
	if id, _ := uri.GetPathAttribute("id", false); id != "" {
		t.id = []byte(id)
	}
	if uri.HasPIN() {
		text, err := uri.GetPIN()
		if err != nil {
			return nil, err
		}
		t.pin = strings.TrimRight(text, "\r\n")
	}
	if t.pin == "" {
		return nil, errors.New("the PIN is missing: put it into a file and name that with &pin-source=file:/PATH")
	}
	return t, nil
}

// HasPIN tells whether the URI says where the PIN is.
func HasPIN(text string) bool { return strings.Contains(text, "pin-source=") }
