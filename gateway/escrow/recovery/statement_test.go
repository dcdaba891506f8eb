package recovery_test

import (
	"bytes"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
)

func good(t testing.TB) recovery.Statement {
	t.Helper()
	f, err := recovery.NewCaseFile(recovery.Statement{Record: 7, KeyID: hex.EncodeToString(make([]byte, 32)), Owner: "alice@LAB.TEST",
		Manager: "helpdesk@LAB.TEST", Recipient: "alice@LAB.TEST", Reason: "verlorener Laptop — Ticket 4711"})
	if err != nil {
		t.Fatal(err)
	}
	return f.Statement
}

func TestAStatementThatLacksSomethingOrHidesSomethingIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *recovery.Statement)
		word   string
	}{
		"no key":               {func(s *recovery.Statement) { s.Record = 0 }, "number"},
		"no hash":              {func(s *recovery.Statement) { s.KeyID = "" }, "key_id"},
		"a hash in capitals":   {func(s *recovery.Statement) { s.KeyID = strings.Repeat("AB", 32) }, "key_id"},
		"nobody's key":         {func(s *recovery.Statement) { s.Owner = "" }, "owner"},
		"no manager":           {func(s *recovery.Statement) { s.Manager = "" }, "manager"},
		"for nobody":           {func(s *recovery.Statement) { s.Recipient = "" }, "person"},
		"no reason":            {func(s *recovery.Statement) { s.Reason = " " }, "reason"},
		"a long reason":        {func(s *recovery.Statement) { s.Reason = strings.Repeat("x", recovery.MaxReason+1) }, "octets"},
		"a cursor movement":    {func(s *recovery.Statement) { s.Reason = "x\x1b[1A" }, "cannot be shown"},
		"text from the right":  {func(s *recovery.Statement) { s.Recipient = "ecila\u202eTSET.BAL" }, "person"},
		"a second line":        {func(s *recovery.Statement) { s.Reason = "x\nFor: bob" }, "one line"},
		"half a character":     {func(s *recovery.Statement) { s.Owner = "a\xff" }, "owner"},
		"a short case key":     {func(s *recovery.Statement) { s.PublicKey = s.PublicKey[1:] }, "case key"},
		"a case key with more": {func(s *recovery.Statement) { s.PublicKey = append(s.PublicKey, 0) }, "case key"},
	} {
		s := good(t)
		c.change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want %q in it", name, err, c.word)
		}
	}
	s := good(t)
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// What the code stands for must not be movable from one field to the next.
func TestEveryFieldIsInTheCode(t *testing.T) {
	base := good(t)
	if !regexp.MustCompile(`^([0-9A-HJKMNP-TV-Z]{4}-){3}[0-9A-HJKMNP-TV-Z]{4}$`).MatchString(base.Code()) {
		t.Errorf("code %q", base.Code())
	}
	codes := map[string]string{base.Code(): "the statement"}
	for name, change := range map[string]func(s *recovery.Statement){
		"record": func(s *recovery.Statement) { s.Record++ }, "key": func(s *recovery.Statement) { s.KeyID = strings.Repeat("ab", 32) },
		"owner": func(s *recovery.Statement) { s.Owner += "x" }, "manager": func(s *recovery.Statement) { s.Manager += "x" },
		"recipient": func(s *recovery.Statement) { s.Recipient += "x" }, "reason": func(s *recovery.Statement) { s.Reason += "x" },
		"case key": func(s *recovery.Statement) { s.PublicKey = bytes.Clone(s.PublicKey); s.PublicKey[0] ^= 1 },
		"a move":   func(s *recovery.Statement) { s.Owner, s.Manager = s.Owner+s.Manager[:1], s.Manager[1:] },
	} {
		s := base
		change(&s)
		if other := codes[s.Code()]; other != "" {
			t.Errorf("%s has the same code as %s", name, other)
		}
		codes[s.Code()] = name
	}
}
