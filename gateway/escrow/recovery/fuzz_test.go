package recovery_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/escrow/recovery"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// FuzzApprove reads files as an agent's machine gets them, and approvals as the gateway does.
func FuzzApprove(f *testing.F) {
	key, agent := testpki.Agent(f, "kra", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	_, other := testpki.Agent(f, "kra2", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	_, user := testpki.Agent(f, "alice", time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	id := sha256.Sum256(user.RawSubjectPublicKeyInfo)
	sealed, err := quorum.Seal([]byte("key"), quorum.Terms{KeyID: id[:], Owner: "alice", Policy: "mail", Required: 2}, quorum.Certificates(agent, other))
	if err != nil {
		f.Fatal(err)
	}
	c, err := recovery.NewCaseFile(recovery.Statement{Record: 1, KeyID: hex.EncodeToString(id[:]), Owner: "alice", Manager: "helpdesk", Recipient: "alice", Reason: "lost"})
	if err != nil {
		f.Fatal(err)
	}
	file := recovery.File{Case: 1, Expires: time.Now().AddDate(1, 0, 0), Policy: "mail", Required: 2, Statement: c.Statement,
		Archived: recovery.Archived{Format: escrow.FormatShared, Sealed: sealed, Certificate: user.Raw}, Agents: [][]byte{agent.Raw}}
	approval, err := recovery.Approve(&file, c.Statement.Code(), agent, key, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	for _, v := range []any{file, approval} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var in recovery.File
		if recovery.Decode(bytes.NewReader(text), recovery.MaxFile, &in) == nil {
			_, _ = recovery.Approve(&in, in.Statement.Code(), agent, key, time.Now())
		}
		var a recovery.Approval
		if recovery.Decode(bytes.NewReader(text), recovery.MaxApproval, &a) == nil {
			_ = a.Verify(&file.Statement, &file.Archived)
		}
	})
}
