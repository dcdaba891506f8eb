package witness_test

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/audit/witness"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/test/testpki"
)

var background = context.Background()

// logged is an audit log with its signer.
type logged struct {
	db     *store.DB
	signer *audit.Signer
}

func newLog(t testing.TB, key ed25519.PrivateKey) *logged {
	t.Helper()
	s, err := audit.NewSigner("gw1.lab.test", key)
	if err != nil {
		t.Fatal(err)
	}
	return &logged{testpki.DB(t), s}
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// grow appends n lines and signs the log.
func (l *logged) grow(t testing.TB, n int, what string) *audit.Checkpoint {
	t.Helper()
	var c *audit.Checkpoint
	if err := l.db.Write(background, func(tx *sql.Tx) (err error) {
		for i := range n {
			if err := audit.Append(tx, time.Now(), "test", audit.KeyRecovered, map[string]any{"n": i, "what": what}); err != nil {
				return err
			}
		}
		if _, err := audit.Grow(background, tx, 1<<20); err != nil {
			return err
		}
		c, err = audit.Sign(background, tx, time.Now(), l.signer)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *logged) submit(w *witness.Client, c *audit.Checkpoint) (string, error) {
	return w.Submit(background, c, func(old int64) (tlog.TreeProof, error) { return audit.ProveBegin(background, l.db.SQL, c, old) })
}

// watch starts a witness of the log.
func watch(t testing.TB, key ed25519.PrivateKey, logs ...string) (*witness.Witness, *witness.Client) {
	t.Helper()
	w, err := witness.New(testpki.DB(t), witness.NewSigner("gw2.lab.test", key, time.Now), logs, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(http.StripPrefix("/witness", w))
	t.Cleanup(server.Close)
	v, err := witness.NewVerifier(w.Key())
	if err != nil {
		t.Fatal(err)
	}
	return w, &witness.Client{HTTP: server.Client(), URL: server.URL + "/witness/", Key: v}
}

func TestAWitnessFollowsAGrowingLog(t *testing.T) {
	l, cosigner := newLog(t, newKey(t)), newKey(t)
	w, client := watch(t, cosigner, l.signer.VerifierKey())
	// The key is what another implementation of cosignatures makes of it.
	theirs, err := torchwood.NewCosignatureSigner("gw2.lab.test", cosigner)
	if err != nil {
		t.Fatal(err)
	}
	if theirs.Verifier().String() != w.Key() {
		t.Errorf("key %s, torchwood says %s", w.Key(), theirs.Verifier())
	}
	for i := range 40 {
		c := l.grow(t, i%7, "line") // sometimes none
		if c.Size == 0 {
			continue
		}
		lines, err := l.submit(client, c)
		if err != nil {
			t.Fatalf("%d lines: %v", c.Size, err)
		}
		// Its verifier accepts the cosignature too.
		if _, err := note.Open([]byte(c.Text()+"\n"+lines), note.VerifierList(theirs.Verifier())); err != nil {
			t.Fatalf("torchwood: %v", err)
		}
		if err := l.db.Write(background, func(tx *sql.Tx) error { return audit.Cosign(background, tx, c, lines) }); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 { // a restart forgets what the witness knows
			client = &witness.Client{HTTP: client.HTTP, URL: client.URL, Key: client.Key}
		}
		last, sig, err := audit.LastCosigned(background, l.db.SQL, client.Key)
		if err != nil || last == nil || last.Size != c.Size {
			t.Fatalf("%v, %v", last, err)
		}
		if at, err := witness.Time(*sig); err != nil || time.Since(at) > time.Minute {
			t.Errorf("%v, %v", at, err)
		}
	}
	v, err := note.NewVerifier(l.signer.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifySigned(background, l.db.SQL, v); err != nil {
		t.Errorf("with cosignatures: %v", err)
	}
	states, err := w.States(background)
	if err != nil || len(states) != 1 || states[0].Log != "gw1.lab.test" {
		t.Errorf("%+v, %v", states, err)
	}
}

func TestAttackRolledBackDatabaseIsFoundByTheWitness(t *testing.T) {
	key := newKey(t)
	l := newLog(t, key)
	_, client := watch(t, newKey(t), l.signer.VerifierKey())
	if _, err := l.submit(client, l.grow(t, 20, "line")); err != nil {
		t.Fatal(err)
	}
	// A backup from before has fewer lines.
	old := newLog(t, key)
	_, err := old.submit(client, old.grow(t, 10, "line"))
	if ahead, ok := errors.AsType[*witness.AheadError](err); !ok || ahead.Seen != 20 || ahead.Lines != 10 {
		t.Errorf("put back: %v", err)
	}
	// It grows beyond what the witness has seen, with other lines.
	if _, err := old.submit(client, old.grow(t, 15, "other")); err == nil || !strings.Contains(err.Error(), "does not begin with") {
		t.Errorf("grown again: %v", err)
	}
	// As many lines as before, other ones.
	same := newLog(t, key)
	if _, err := same.submit(client, same.grow(t, 20, "other")); err == nil || !strings.Contains(err.Error(), "another one") {
		t.Errorf("written anew: %v", err)
	}
}

func TestWhatIsNotACheckpointOfAKnownLogIsRefused(t *testing.T) {
	l := newLog(t, newKey(t))
	w, client := watch(t, newKey(t), l.signer.VerifierKey())
	good := l.grow(t, 3, "line")
	forged := newLog(t, newKey(t)).grow(t, 3, "line") // same name, another key
	other, err := audit.NewSigner("gw9.lab.test", newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	foreign := (&logged{testpki.DB(t), other}).grow(t, 3, "line")
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"nothing":             {"", 400},
		"no old size":         {"\n\n" + good.Note, 400},
		"old size with zeros": {"old 00\n\n" + good.Note, 400},
		"negative":            {"old -1\n\n" + good.Note, 400},
		"more than there is":  {"old 4\n\n" + good.Note, 400},
		"proof from nothing":  {"old 0\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n" + good.Note, 422},
		"short hash":          {"old 0\nAAAA\n\n" + good.Note, 400},
		"many hashes":         {"old 0\n" + strings.Repeat("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 64) + "\n" + good.Note, 400},
		"another log":         {"old 0\n\n" + foreign.Note, 404},
		"another key":         {"old 0\n\n" + forged.Note, 403},
		"too long":            {"old 0\n\n" + good.Note + strings.Repeat("x", 1<<20), 400},
	} {
		r := httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(c.body))
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%s: %d %s, want %d", name, rec.Code, rec.Body, c.want)
		}
	}
	if states, err := w.States(background); err != nil || len(states) != 0 {
		t.Errorf("%+v, %v", states, err)
	}
	liar := *client
	if liar.Key, err = witness.NewVerifier(witness.NewSigner("gw2.lab.test", newKey(t), time.Now).String()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.submit(&liar, good); err == nil || !strings.Contains(err.Error(), "not signed with its key") {
		t.Errorf("a witness with another key: %v", err)
	}
	for _, text := range []string{"", "x", "a+b+c", client.Key.String() + "A", strings.Replace(client.Key.String(), "gw2", "gw3", 1), l.signer.VerifierKey()} {
		if _, err := witness.NewVerifier(text); err == nil {
			t.Errorf("%q is a witness's key", text)
		}
	}
}

// Two logs submit at once: what the witness remembers only grows.
func TestConcurrentSubmissionsNeverRollTheWitnessBack(t *testing.T) {
	l := newLog(t, newKey(t))
	w, client := watch(t, newKey(t), l.signer.VerifierKey())
	var checkpoints []*audit.Checkpoint
	for range 8 {
		checkpoints = append(checkpoints, l.grow(t, 3, "line"))
	}
	done := make(chan error, len(checkpoints))
	for _, c := range checkpoints {
		go func() {
			own := &witness.Client{HTTP: client.HTTP, URL: client.URL, Key: client.Key}
			_, err := l.submit(own, c)
			done <- err
		}()
	}
	accepted := 0
	for range checkpoints {
		if <-done == nil {
			accepted++
		}
	}
	states, err := w.States(background)
	if err != nil || len(states) != 1 || accepted == 0 {
		t.Fatalf("%+v, %v, %d accepted", states, err, accepted)
	}
	if last := checkpoints[len(checkpoints)-1]; states[0].Size < last.Size {
		if _, err := l.submit(client, last); err != nil {
			t.Error(err)
		}
	}
}
