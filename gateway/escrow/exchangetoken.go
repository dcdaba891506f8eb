package escrow

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/youmark/pkcs8"
)

// inToken begins what is stored of a key in the token; its id (CKA_ID) follows in hexadecimal. Keys that are in the database
// are encrypted PKCS#8, which begins with a SEQUENCE.
const inToken = "pkcs11:id="

// generate makes a key, in the token where there is one, and what is stored of it.
func (e *Escrow) generate() (key pkcs11.Key, stored []byte, err error) {
	if e.o.ExchangeToken == "" {
		private, err := rsa.GenerateKey(rand.Reader, exchangeBits)
		if err != nil {
			return nil, nil, err
		}
		stored, err := pkcs8.MarshalPrivateKey(private, e.o.Secret, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("encrypt: %w", err)
		}
		return private, stored, nil
	}
	if err := e.openToken(); err != nil {
		return nil, nil, err
	}
	id := make([]byte, 16)
	rand.Read(id)
	signer, err := e.token.GenerateRSA(id, "enrollgate exchange "+e.o.Now().UTC().Format("2006-01-02"), exchangeBits, true)
	if err != nil {
		return nil, nil, errors.Join(err, e.closeToken())
	}
	key, ok := signer.(pkcs11.Key)
	if !ok {
		return nil, nil, fmt.Errorf("the token's keys (%T) cannot decrypt", signer)
	}
	return key, []byte(inToken + hex.EncodeToString(id)), nil
}

// openStored returns a key from what is stored of it.
func (e *Escrow) openStored(stored []byte, public crypto.PublicKey) (crypto.Decrypter, error) {
	id, ok, err := tokenID(stored)
	if err != nil {
		return nil, err
	}
	if !ok {
		private, err := pkcs8.ParsePKCS8PrivateKeyRSA(stored, e.o.Secret)
		if err != nil {
			return nil, fmt.Errorf("it cannot be decrypted with the configured secret: %w", err)
		}
		return private, nil
	}
	return &tokenKey{escrow: e, id: id, public: public}, nil
}

// tokenKey is a key in the token, which is opened when the key is needed: who only looks at the escrow does not log in.
type tokenKey struct {
	escrow *Escrow
	id     []byte
	public crypto.PublicKey
}

func (k *tokenKey) Public() crypto.PublicKey { return k.public }

func (k *tokenKey) Decrypt(rand io.Reader, message []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	var key pkcs11.Key
	var err error
	memory.Outside(func() { key, err = k.find() })
	if err != nil {
		return nil, err
	}
	return key.Decrypt(rand, message, opts)
}

func (k *tokenKey) find() (pkcs11.Key, error) {
	k.escrow.mu.Lock()
	defer k.escrow.mu.Unlock()
	var failed error
	for range 2 { // the second time with a new session: the token may have been away
		if err := k.escrow.openToken(); err != nil {
			return nil, errors.Join(failed, err)
		}
		key, err := k.escrow.token.Find(k.id)
		if err == nil && key != nil {
			return key, nil
		}
		if err == nil {
			err = fmt.Errorf("the token has no key with the id %x", k.id)
		}
		failed = errors.Join(err, k.escrow.closeToken())
	}
	return nil, failed
}

func tokenID(stored []byte) (id []byte, ok bool, err error) {
	text, ok := bytes.CutPrefix(stored, []byte(inToken))
	if ok {
		id, err = hex.DecodeString(string(text))
	}
	return id, ok, err
}

func (e *Escrow) openToken() (err error) {
	if e.token == nil {
		if e.o.ExchangeToken == "" {
			return errors.New("it is in a PKCS#11 token, and escrow.exchange_token is not configured")
		}
		e.token, err = pkcs11.Open(e.o.ExchangeToken, "")
	}
	return err
}

// Close lets go of the token.
func (e *Escrow) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.keys = nil
	return e.closeToken()
}

// closeToken ends the session; the next use begins another.
func (e *Escrow) closeToken() error {
	if e.token == nil {
		return nil
	}
	err := e.token.Close()
	e.token = nil
	return err
}

// discard destroys a key that was made in the token and is not used after all.
func (e *Escrow) discard(stored []byte) error {
	id, ok, err := tokenID(stored)
	if err != nil || !ok || e.token == nil {
		return err
	}
	return e.token.Destroy(id)
}

// DestroyExpired destroys the exchange keys whose grace period is over, in the token and in the database; loadKeys forgets them. What
// clients sent to them opens no more.
func (e *Escrow) DestroyExpired(ctx context.Context) error {
	now := e.o.Now()
	rows, err := e.o.DB.SQL.QueryContext(ctx, "SELECT id, ca, private_key, usable_until FROM exchange_keys WHERE usable_until <= ? AND destroyed = 0 ORDER BY id", now.UnixMilli())
	if err != nil {
		return fmt.Errorf("exchange keys: %w", err)
	}
	defer rows.Close()
	type expired struct {
		id, until int64
		ca        string
		stored    []byte
	}
	var list []expired
	for rows.Next() {
		var k expired
		if err := rows.Scan(&k.id, &k.ca, &k.stored, &k.until); err != nil {
			return fmt.Errorf("exchange keys: %w", err)
		}
		list = append(list, k)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("exchange keys: %w", err)
	}
	for _, k := range list {
		if err := e.destroyExchange(ctx, k.id, k.ca, k.stored); err != nil {
			return fmt.Errorf("destroy exchange key %d: %w", k.id, err)
		}
	}
	return nil
}

func (e *Escrow) destroyExchange(ctx context.Context, id int64, ca string, stored []byte) error {
	object, ok, err := tokenID(stored)
	if err != nil {
		return err
	}
	if ok {
		e.mu.Lock()
		err := e.openToken()
		if err == nil {
			err = e.token.Destroy(object)
		}
		e.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return e.o.DB.Write(ctx, func(tx *sql.Tx) error {
		now := e.o.Now()
		res, err := tx.Exec("UPDATE exchange_keys SET private_key = ?, destroyed = ? WHERE id = ? AND destroyed = 0", []byte{}, now.UnixMilli(), id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 { // another process was first
			return err
		}
		return audit.Append(tx, now, "gateway", audit.ExchangeDestroyed, map[string]any{"ca": ca, "exchange_key": id, "token": ok})
	})
}
