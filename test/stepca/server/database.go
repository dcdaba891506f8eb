package server

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// Database is what step-ca has stored. A certificate that is made twice under one serial number is stored once: the later
// one.
type Database struct {
	Certificates map[string]*x509.Certificate // by decimal serial number
	Revoked      map[string]bool              // decimal serial numbers, also of what was never issued
	Tokens       []string                     // the ids of all tokens that were used
}

// Stop ends step-ca at once and reads what it leaves behind.
func (s *Server) Stop(t testing.TB) *Database {
	t.Helper()
	s.stop()
	db, err := bolt.Open(s.database, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := &Database{Certificates: map[string]*x509.Certificate{}, Revoked: map[string]bool{}}
	each := func(tx *bolt.Tx, name string, do func(key, value []byte) error) error {
		bucket := tx.Bucket([]byte(name))
		if bucket == nil {
			return errors.New("step-ca has no table " + name)
		}
		return bucket.ForEach(do)
	}
	err = db.View(func(tx *bolt.Tx) error {
		return errors.Join(
			each(tx, "x509_certs", func(key, value []byte) (err error) {
				d.Certificates[string(key)], err = x509.ParseCertificate(bytes.Clone(value)) // value is gone with the transaction
				return err
			}),
			each(tx, "revoked_x509_certs", func(key, _ []byte) error { d.Revoked[string(key)] = true; return nil }),
			each(tx, "used_ott", func(key, _ []byte) error { d.Tokens = append(d.Tokens, string(key)); return nil }))
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
