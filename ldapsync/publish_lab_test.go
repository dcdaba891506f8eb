package ldapsync

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/templates/security"
)

// temporary creates an account and an organizational unit beside it, until the test ends.
func temporary(t *testing.T, name string) (dn, unit string, sid security.SID) {
	t.Helper()
	conn := admin(t)
	base := os.Getenv("LAB_BASE_DN")
	dn, unit = "CN="+name+",CN=Users,"+base, "OU="+name+","+base
	user, ou := ldap.NewAddRequest(dn, nil), ldap.NewAddRequest(unit, nil)
	user.Attribute("objectClass", []string{"user"})
	user.Attribute("sAMAccountName", []string{name})
	user.Attribute("userAccountControl", []string{"544"}) // NORMAL_ACCOUNT, PASSWD_NOTREQD
	ou.Attribute("objectClass", []string{"organizationalUnit"})
	for _, add := range []*ldap.AddRequest{user, ou} {
		if err := conn.Add(add); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Del(ldap.NewDelRequest(add.DN, nil)) })
	}
	res, err := conn.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"objectSid"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if sid, err = security.ParseSID(res.Entries[0].GetRawAttributeValue("objectSid")); err != nil {
		t.Fatal(err)
	}
	return dn, unit, sid
}

// account looks one up and requires its state.
func account(t *testing.T, d *Directory, sid security.SID, want AccountState) Account {
	t.Helper()
	found, err := d.AccountsWithCertificates(still(t), []security.SID{sid})
	if err != nil || found[sid].State != want {
		t.Errorf("%+v, %v; want %s", found[sid], err, want)
	}
	return found[sid]
}

func TestCertificatesAreAddedAndDeletedByValueWhereverTheAccountIs(t *testing.T) {
	d := open(t, sealedKerberos())
	dn, unit, sid := temporary(t, "mover")
	change := func(add, remove [][]byte, want string) {
		t.Helper()
		if err := d.ChangeCertificates(still(t), sid, add, remove); err != nil {
			t.Fatal(err)
		}
		if got := string(bytes.Join(account(t, d, sid, AccountEnabled).Certificates, []byte(" "))); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	one, two := []byte("one"), []byte("two")
	change([][]byte{one}, nil, "one")
	change([][]byte{one}, nil, "one") // again: as good as written
	change([][]byte{two}, [][]byte{one}, "two")
	change(nil, [][]byte{one}, "two") // gone already
	conn := admin(t)
	if err := conn.ModifyDN(ldap.NewModifyDNRequest(dn, "CN=mover", true, unit)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Del(ldap.NewDelRequest("CN=mover,"+unit, nil)) })
	change([][]byte{one}, [][]byte{two}, "one")
}

func TestWhoMayNotWriteIsToldWhichRightIsMissing(t *testing.T) {
	c := sealedKerberos()
	c.Auth = Auth{Method: GSSAPI, Principal: "bob@LAB.TEST", Password: os.Getenv("LAB_PASSWORD")}
	d := open(t, c)
	dn, _, sid := temporary(t, "target")
	err := d.ChangeCertificates(still(t), sid, [][]byte{[]byte("x")}, nil)
	if right, ok := errors.AsType[*RightError](err); !ok || right.DN != dn || right.KRA {
		t.Errorf("%v", err)
	}
	err = d.ChangeKRACertificates(still(t), "No CA", [][]byte{[]byte("x")}, nil)
	if right, ok := errors.AsType[*RightError](err); !ok || !right.KRA {
		t.Errorf("%v", err)
	}
	d.Reconnect()
	if account(t, d, sid, AccountEnabled).DN != dn {
		t.Error("no connection any more")
	}
}

func TestTheLastCertificateOfAnObjectInTheKRAContainerStays(t *testing.T) {
	d := open(t, sealedKerberos())
	one, two := []byte("one"), []byte("two")
	const name = "A!002cB"
	conn := admin(t)
	t.Cleanup(func() {
		_ = conn.Del(ldap.NewDelRequest("CN="+name+",CN=KRA,"+pkiBase(os.Getenv("LAB_CONFIG_DN")), nil))
	})
	for _, c := range []struct {
		add, remove [][]byte
		want        int
	}{{nil, [][]byte{one}, 0}, {[][]byte{one, two}, nil, 2}, {nil, [][]byte{one, two}, 1}, {[][]byte{one}, [][]byte{two}, 1}} {
		if err := d.ChangeKRACertificates(still(t), name, c.add, c.remove); err != nil {
			t.Fatal(err)
		}
		if got, err := d.KRACertificates(still(t), name); err != nil || len(got) != c.want {
			t.Errorf("%q, %v; want %d", got, err, c.want)
		}
	}
}

func TestWhatBecameOfAnAccount(t *testing.T) {
	d, all := open(t, sealedKerberos()), open(t, administrator())
	dn, _, sid := temporary(t, "fate")
	account(t, d, sid, AccountEnabled)
	set(t, admin(t), dn, "accountExpires", strconv.FormatInt((time.Now().Add(time.Hour).Unix()+11_644_473_600)*1e7, 10))
	account(t, d, sid, AccountEnabled)
	set(t, admin(t), dn, "accountExpires", strconv.FormatInt((time.Now().Add(-time.Hour).Unix()+11_644_473_600)*1e7, 10))
	account(t, d, sid, AccountExpired)
	set(t, admin(t), dn, "userAccountControl", "546")
	account(t, d, sid, AccountDisabled)
	if err := admin(t).Del(ldap.NewDelRequest(dn, nil)); err != nil {
		t.Fatal(err)
	}
	account(t, d, sid, AccountDeleted)
	if why := account(t, all, sid, AccountDeleted).Why; !strings.Contains(why, "tombstone") {
		t.Errorf("an administrator sees no tombstone: %s", why)
	}
	if err := d.ChangeCertificates(still(t), sid, [][]byte{[]byte("x")}, nil); !errors.Is(err, ErrNoAccount) {
		t.Errorf("%v", err)
	}
	account(t, d, "S-1-5-21-1-2-3-500", AccountUnknown)
	account(t, d, "nonsense", AccountUnknown)
}

// Pages of one entry: what is published is read to the end, with the accounts' names as in their tickets.
func TestWhatIsPublishedIsReadPageByPage(t *testing.T) {
	c := sealedKerberos()
	c.PageSize = 1
	d := open(t, c)
	want := map[string]string{"reader1@LAB.TEST": "one", "reader2@LAB.TEST": "two", "reader3@LAB.TEST": "three"}
	for account, value := range want {
		name, _, _ := strings.Cut(account, "@")
		_, _, sid := temporary(t, name)
		if err := d.ChangeCertificates(still(t), sid, [][]byte{[]byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	found := 0
	if err := d.Published(still(t), func(account string, values [][]byte) error {
		if w, ok := want[account]; ok && len(values) == 1 && string(values[0]) == w {
			found++
		}
		return nil
	}); err != nil || found != len(want) {
		t.Errorf("%d accounts of %d, %v", found, len(want), err)
	}
	if err := d.Published(still(t), func(string, [][]byte) error { return errStop }); !errors.Is(err, errStop) {
		t.Errorf("the reader's own error: %v", err)
	}
}

var errStop = errors.New("enough")
