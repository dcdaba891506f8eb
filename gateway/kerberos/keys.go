package kerberos

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"
)

// serviceKey is one key of the keytab.
type serviceKey struct {
	principal string // without the realm
	realm     string
	kvno      int
	key       types.EncryptionKey
}

// keySource holds the keys of the service account. A keytab file is read again when it changed, so that a new
// password of the account needs no restart.
type keySource struct {
	path string

	mu       sync.Mutex // guards what follows
	keys     []serviceKey
	modified time.Time
}

func newKeySource(path string, kt *keytab.Keytab) (*keySource, error) {
	s := &keySource{path: path}
	if kt != nil {
		s.path = ""
		s.keys = keysOf(kt)
		return s, nil
	}
	if path == "" {
		return nil, fmt.Errorf("kerberos: no keytab is configured")
	}
	if _, err := s.reload(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *keySource) name() string {
	if s.path == "" {
		return "keytab"
	}
	return "keytab " + s.path
}

// reload reads the file if it changed since the last time, and tells whether it did.
func (s *keySource) reload() (bool, error) {
	if s.path == "" {
		return false, nil
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return false, fmt.Errorf("keytab: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if info.ModTime().Equal(s.modified) {
		return false, nil
	}
	kt, err := loadKeytab(s.path)
	if err != nil {
		return false, err
	}
	s.keys, s.modified = keysOf(kt), info.ModTime()
	return true, nil
}

// loadKeytab reads a keytab. The library's errors quote the file's octets, keys included, so they are not passed on;
// and it indexes a damaged file without checks.
func loadKeytab(path string) (kt *keytab.Keytab, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keytab: %w", err)
	}
	defer clear(b)
	defer func() {
		if recover() != nil {
			kt, err = nil, fmt.Errorf("keytab %s: damaged", path)
		}
	}()
	kt = keytab.New()
	if kt.Unmarshal(b) != nil {
		return nil, fmt.Errorf("keytab %s: not a keytab, or damaged", path)
	}
	return kt, nil
}

func keysOf(kt *keytab.Keytab) []serviceKey {
	keys := make([]serviceKey, 0, len(kt.Entries))
	for _, e := range kt.Entries {
		keys = append(keys, serviceKey{
			principal: strings.Join(e.Principal.Components, "/"),
			realm:     e.Principal.Realm,
			kvno:      int(e.KVNO),
			key:       e.Key,
		})
	}
	return keys
}

func (s *keySource) all() []serviceKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}

// candidates are the keys that may open a ticket of this encryption type and key version (0: unknown), the likeliest
// first. The principal only decides the order: one account has one key under all its names, and the name in a ticket
// may be spelled otherwise than in the keytab.
func (s *keySource) candidates(spn string, etype int32, kvno int) []serviceKey {
	var out []serviceKey
	for _, k := range s.all() {
		if k.key.KeyType != etype || kvno != 0 && k.kvno != kvno {
			continue
		}
		if slices.ContainsFunc(out, func(o serviceKey) bool { return slices.Equal(o.key.KeyValue, k.key.KeyValue) }) {
			continue
		}
		out = append(out, k)
	}
	slices.SortStableFunc(out, func(a, b serviceKey) int {
		return rank(a, spn) - rank(b, spn)
	})
	return out
}

func rank(k serviceKey, spn string) int {
	switch {
	case k.principal == spn:
		return 0
	case strings.EqualFold(k.principal, spn):
		return 1
	}
	return 2
}

// versions lists the key versions and encryption types in the keytab, for error texts.
func (s *keySource) versions() string {
	var out []string
	for _, k := range s.all() {
		v := fmt.Sprintf("%d (%s)", k.kvno, etypeName(k.key.KeyType))
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return strings.Join(out, ", ")
}

// httpPrincipals are the HTTP service principals in the keytab.
func (s *keySource) httpPrincipals() []string {
	var out []string
	for _, k := range s.all() {
		if strings.HasPrefix(strings.ToUpper(k.principal), "HTTP/") && !slices.Contains(out, k.principal) {
			out = append(out, k.principal)
		}
	}
	return out
}

func (s *keySource) hasUsable(rc4 bool) bool {
	return slices.ContainsFunc(s.all(), func(k serviceKey) bool { return etypeAllowed(k.key.KeyType, rc4) })
}

// etypeAllowed admits AES with SHA-1 (RFC 3962) and SHA-2 (RFC 8009), and RC4 (RFC 4757) where it is allowed.
func etypeAllowed(etype int32, rc4 bool) bool {
	switch etype {
	case etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA1_96,
		etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA384_192:
		return true
	case etypeID.RC4_HMAC:
		return rc4
	}
	return false
}

// etypeName is the usual name of an encryption type.
func etypeName(etype int32) string {
	switch etype {
	case etypeID.AES128_CTS_HMAC_SHA1_96:
		return "aes128-cts-hmac-sha1-96"
	case etypeID.AES256_CTS_HMAC_SHA1_96:
		return "aes256-cts-hmac-sha1-96"
	case etypeID.AES128_CTS_HMAC_SHA256_128:
		return "aes128-cts-hmac-sha256-128"
	case etypeID.AES256_CTS_HMAC_SHA384_192:
		return "aes256-cts-hmac-sha384-192"
	case etypeID.RC4_HMAC:
		return "rc4-hmac"
	}
	return fmt.Sprintf("encryption type %d", etype)
}

// KeyInfo is a key of a keytab, without the key.
type KeyInfo struct {
	Principal string // without the realm
	Realm     string
	Version   int
	Type      int32  // [MS-KILE] 3.1.5.2
	TypeName  string // "aes256-cts-hmac-sha1-96"
}

// Keytab lists what keys a keytab holds.
func Keytab(path string) ([]KeyInfo, error) {
	kt, err := loadKeytab(path)
	if err != nil {
		return nil, err
	}
	var out []KeyInfo
	for _, k := range keysOf(kt) {
		out = append(out, KeyInfo{Principal: k.principal, Realm: k.realm, Version: k.kvno, Type: k.key.KeyType, TypeName: etypeName(k.key.KeyType)})
		clear(k.key.KeyValue)
	}
	return out, nil
}
