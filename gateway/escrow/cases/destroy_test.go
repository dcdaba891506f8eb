package cases_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

func TestAKeyIsNotDestroyedUnderALiveCase(t *testing.T) {
	o := newOffice(t, 2)
	_, e := o.archive(t, "alice")
	id, _ := o.open(t, e)
	if err := o.escrow.Destroy(background, e.ID, "admin", "reason"); !errors.Is(err, escrow.ErrKept) || !strings.Contains(err.Error(), "recovery case") {
		t.Errorf("while a case is open: %v", err)
	}
	if _, err := o.Withdraw(background, who("helpdesk"), id, "no need"); err != nil {
		t.Fatal(err)
	}
	if err := o.escrow.Destroy(background, e.ID, "admin", "reason"); err != nil {
		t.Fatal(err)
	}
	file, err := recovery.NewCaseFile(statement(e, "helpdesk"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Open(background, who("helpdesk"), file.Statement)
	wantCode(t, "a case for a destroyed key", err, hresult.InvalidArg)
	if err == nil || !strings.Contains(err.Error(), "was destroyed at") {
		t.Errorf("what the manager is told: %v", err)
	}
	if keys, err := o.Keys(background, who("helpdesk"), "alice"); err != nil || len(keys) != 0 {
		t.Errorf("keys to open cases about: %v, %v", keys, err)
	}
}
