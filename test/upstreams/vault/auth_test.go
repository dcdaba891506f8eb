package vault

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/vault"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/contract"
)

func submits(t testing.TB, ca *vault.CA, id string) error {
	t.Helper()
	r, err := ca.Submit(background, contract.WindowsOrder(t, id, testpki.RSA(t, 2048)))
	if err == nil && r.State != upstream.Issued {
		t.Fatalf("%+v", r)
	}
	return err
}

func TestATokenThatVaultDoesNotKnow(t *testing.T) {
	s := start(t)
	var token atomic.Pointer[string]
	set := func(text string) { token.Store(&text) }
	set("hvs.wrong-secret")
	s.o.Token = func() ([]byte, error) { return []byte(*token.Load()), nil }
	ca := s.issuer()
	if err := submits(t, ca, "1-aa"); !upstream.IsNotIssued(err) || strings.Contains(err.Error(), "wrong-secret") {
		t.Errorf("%v", err)
	}
	set("root") // an agent writes the file anew
	if err := submits(t, ca, "2-bb"); err != nil {
		t.Error(err)
	}
	set("")
	if err := submits(t, ca, "3-cc"); !upstream.IsNotIssued(err) {
		t.Errorf("no token: %v", err)
	}
	s.o.Token = func() ([]byte, error) { return nil, errors.New("no such file") }
	if err := submits(t, s.issuer(), "4-dd"); !upstream.IsNotIssued(err) {
		t.Errorf("no file: %v", err)
	}
	s.o.Token = func() ([]byte, error) { return []byte("root"), nil }
	good := s.o.Roots
	s.o.Roots = []*x509.Certificate{s.TLS.Root}
	if err := submits(t, s.issuer(), "6-ff"); !upstream.IsNotIssued(err) || len(s.Stored()) != 1 {
		t.Errorf("another root: %v", err)
	}
	s.o.Roots = good
	s.o.Token, s.o.Namespace = func() ([]byte, error) { return []byte("root"), nil }, "elsewhere/"
	if err := submits(t, s.issuer(), "5-ee"); !upstream.IsNotIssued(err) {
		t.Errorf("another namespace: %v", err)
	}
}

func (s *server) appRole(changes map[string]any) (roleID, secretID string) {
	s.t.Helper()
	in := map[string]any{"token_ttl": "1h", "token_max_ttl": "3h"}
	for k, v := range changes {
		in[k] = v
	}
	s.Post("auth/approle/role/gateway", in)
	roleID = s.Do(http.MethodGet, "auth/approle/role/gateway/role-id", nil)["role_id"].(string)
	return roleID, s.Post("auth/approle/role/gateway/secret-id", map[string]any{})["secret_id"].(string)
}

func TestAnAppRoleLogsInAndRenews(t *testing.T) {
	s := start(t)
	roleID, secretID := s.appRole(nil)
	now := time.Now()
	var logins, renewals, ahead atomic.Int64
	s.o.Token = nil
	s.o.AppRole = &vault.AppRole{RoleID: roleID, SecretID: func() ([]byte, error) { logins.Add(1); return []byte(secretID + "\n"), nil }}
	s.o.Now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	s.Proxy.Make(0, 1<<30, func(r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/renew-self") {
			renewals.Add(1)
		}
		return false
	})
	ca := s.issuer()
	check := func(id string, wantLogins, wantRenewals int64) {
		t.Helper()
		if err := submits(t, ca, id); err != nil {
			t.Fatal(err)
		}
		if logins.Load() != wantLogins || renewals.Load() != wantRenewals {
			t.Errorf("%s: %d logins and %d renewals, want %d and %d", id, logins.Load(), renewals.Load(), wantLogins, wantRenewals)
		}
	}
	check("1-aa", 1, 0)
	check("2-bb", 1, 0)
	ahead.Store(int64(40 * time.Minute)) // past half of the hour
	check("3-cc", 1, 1)
	check("4-dd", 1, 1)
	ahead.Store(int64(4 * time.Hour)) // by our clock it has ended
	check("5-ee", 2, 1)
	wrong := *s.o.AppRole
	wrong.SecretID = func() ([]byte, error) { return []byte("0000-secret"), nil }
	s.o.AppRole = &wrong
	if err := submits(t, s.issuer(), "6-ff"); !upstream.IsNotIssued(err) || strings.Contains(err.Error(), "0000-secret") {
		t.Errorf("a wrong secret ID: %v", err)
	}
}

// A token whose policy does not suffice is not the login's fault: a login may be counted (secret_id_num_uses).
func TestAPolicyThatDoesNotSufficeIsNotLoggedInAgain(t *testing.T) {
	s := start(t)
	roleID, secretID := s.appRole(map[string]any{"secret_id_num_uses": 1})
	var logins atomic.Int64
	s.o.Token = nil
	s.o.AppRole = &vault.AppRole{RoleID: roleID, SecretID: func() ([]byte, error) { logins.Add(1); return []byte(secretID), nil }}
	ca := s.issuer()
	if err := submits(t, ca, "1-aa"); err != nil {
		t.Fatal(err)
	}
	s.Post("test/deny", map[string]any{"path": "pki/sign/mail"})
	for _, id := range []string{"2-bb", "3-cc"} {
		if err := submits(t, ca, id); !upstream.IsNotIssued(err) || !strings.Contains(err.Error(), "needs update on pki/sign/mail") {
			t.Errorf("%v", err)
		}
	}
	s.Post("test/deny", map[string]any{"path": ""})
	if err := submits(t, ca, "4-dd"); err != nil || logins.Load() != 1 {
		t.Errorf("%v, %d logins", err, logins.Load())
	}
}

// A token that was revoked at Vault is replaced by a login, within the same order.
func TestARevokedTokenIsReplaced(t *testing.T) {
	s := start(t)
	roleID, secretID := s.appRole(map[string]any{"token_ttl": "1s", "token_max_ttl": "1s"})
	s.o.Token = nil
	s.o.AppRole = &vault.AppRole{RoleID: roleID, SecretID: func() ([]byte, error) { return []byte(secretID), nil }}
	begin := time.Now()
	s.o.Now = func() time.Time { return begin } // the driver does not see that the token ends
	ca := s.issuer()
	for _, id := range []string{"1-aa", "2-bb"} {
		if err := submits(t, ca, id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond)
	}
}
