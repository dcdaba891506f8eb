package kill

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// effects are the system calls by which the gateway changes anything outside of it.
const effects = "pwrite64,write,fsync,fdatasync,sendto,connect"

const (
	survivals = 3   // in a row end a sweep
	attempts  = 100 // to hit what the sweeps have missed; the hardest one needs seven or so
)

func TestKilledAtEachEffectOfAnArchivedEnrollmentTheClientGetsOneCertificate(t *testing.T) {
	needStrace(t)
	withEachCA(t, []string{"embedded", "step-ca"}, func(t *testing.T, s *setup) {
		s.change(t, `poll: 200ms`, "poll: 1h")
		s.Env = []string{"GOMAXPROCS=1"}
		s.Start(t)
		j := &journey{setup: s, alice: s.Client(t, "alice"), key: testpki.RSA(t, 2048), certificates: map[string][]byte{}, hits: map[string]int{}}
		j.exchange = j.alice.Exchange(t)
		j.enroll(t, effects, never) // the first one also connects
		expected := named(j.enroll(t, effects, never))
		if j.kills > 0 {
			t.Fatal("the gateway died although it was not to be killed")
		}
		step := 1
		if os.Getenv("KILL_ROUNDS") == "" {
			step = 3
		}
		j.sweep(t, effects, step)
		j.fresh = true
		j.sweep(t, "connect,write,sendto", step)
		j.fresh = false
		for attempt := 0; attempt < attempts && len(j.missed(expected)) > 0; attempt++ {
			call, n := aim(expected, j.missed(expected)[0])
			j.enroll(t, call, n)
		}
		s.kill(t)
		t.Logf("%d enrollments, killed %d times, before:", len(j.certificates), j.kills)
		for _, name := range slices.Sorted(maps.Keys(j.hits)) {
			t.Logf("%4d × %s", j.hits[name], name)
		}
		for _, name := range j.missed(expected) {
			t.Errorf("an enrollment has the effect %q, before which the gateway was never killed", name)
		}
		if again := s.check(t, j.certificates); s.step != nil && again == 0 {
			t.Error("no order was repeated: no kill came between the CA's answer and the ledger")
		}
	})
}

// journey is one archived enrollment after the other.
type journey struct {
	*setup
	alice    *world.Client
	key      *rsa.PrivateKey
	exchange *x509.Certificate
	fresh    bool // restart the gateway before each enrollment: it has to connect and to read the directory then

	certificates map[string][]byte // by request number
	kills        int
	hits         map[string]int // kills by the effect that they came before
}

func (j *journey) sweep(t *testing.T, calls string, step int) {
	t.Helper()
	survived := 0
	for n := 1; survived < survivals; n += step {
		if n > 500 {
			t.Fatalf("an enrollment has more than %d of %s", n, calls)
		}
		if j.fresh {
			j.kill(t)
			j.Start(t)
		}
		before := j.kills
		j.enroll(t, calls, n)
		if survived++; j.kills > before {
			survived = 0
		}
	}
}

// missed are those of the effects that no kill came before. What is written to the directory are questions; and when they
// are asked depends on what the process remembers.
func (j *journey) missed(effects []string) []string {
	var out []string
	for _, name := range effects {
		if j.hits[name] == 0 && !strings.Contains(name, " directory,") && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// aim gives a call and a number with which a kill may come before the effect of that name. strace counts per thread: the
// n-th call of all is the n-th of its thread, or an earlier one.
func aim(effects []string, name string) (call string, n int) {
	call, _, _ = strings.Cut(name, " ")
	var count, first, last int
	for _, e := range effects {
		if strings.HasPrefix(e, call+" ") {
			count++
		}
		if e == name {
			last = count
			if first == 0 {
				first = count
			}
		}
	}
	lowest := first/2 + 1
	return call, lowest + mrand.N(last-lowest+1)
}

// enroll submits a new request while the gateway is to be killed before the n-th of calls. If it is, the client does what
// a client does: it sends the same octets again. The calls that were seen are returned; the last is the one that the kill
// came before.
func (j *journey) enroll(t *testing.T, calls string, n int) []point {
	t.Helper()
	der, err := wcce.NewRequest(wcce.RequestOptions{Key: j.key, Exchange: j.exchange, Extensions: []wcce.Extension{
		{OID: wcce.OIDTemplateName, Value: wcce.BMPString("LabUserSMIME")}, {OID: "1.3.6.1.4.1.55555.1", Value: []byte(rand.Text())}}})
	if err != nil {
		t.Fatal(err)
	}
	tracer := j.trace(t, calls, n)
	first, err := j.alice.Submit(t, der)
	points := tracer.end(t, err == nil && j.Alive())
	where := fmt.Sprintf("%s, %d", calls, n)
	if j.Alive() {
		if err != nil || first.Pending {
			t.Fatalf("%s: the gateway lives, and the client has no certificate: %+v, %v", where, first, err)
		}
	} else {
		last := "unknown: strace was too slow to write it"
		if names := named(points); len(names) > 0 {
			last = names[len(names)-1]
		}
		where += ", before " + last
		j.kills++
		j.hits[last]++
		j.kill(t)
		j.Start(t)
	}
	again := j.insist(t, der, where)
	if err == nil && !first.Pending && !bytes.Equal(first.Certificate, again.Certificate) {
		t.Errorf("%s: the same request gave two certificates", where)
	}
	if old := j.certificates[again.RequestID]; old != nil {
		t.Errorf("%s: the answer is that to another request, %s", where, again.RequestID)
	}
	j.certificates[again.RequestID] = again.Certificate
	return points
}

// insist sends the same octets until there is a certificate, and asks for it while it is pending.
func (j *journey) insist(t *testing.T, der []byte, where string) *soap.TokenReply {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second) // the same octets are the same request for 15 s
	reply, err := j.alice.Submit(t, der)
	for err != nil || reply.Pending {
		if time.Now().After(deadline) {
			t.Fatalf("%s: the client gets no certificate: %+v, %v", where, reply, err)
		}
		time.Sleep(50 * time.Millisecond)
		if err != nil {
			reply, err = j.alice.Submit(t, der)
		} else {
			reply, err = j.alice.Poll(t, reply.RequestID)
		}
	}
	return reply
}

// named says for each call how far the enrollment was: nothing recorded, recorded with the archived key, or closed.
func named(points []point) []string {
	stages := []string{"nothing is recorded", "request and key are recorded", "the certificate is recorded"}
	var out []string
	stage := 0
	for _, p := range points {
		out = append(out, p.String()+", while "+stages[stage])
		if strings.HasSuffix(p.call, "sync") && p.target == "enrollgate.db-wal" && stage < len(stages)-1 {
			stage++
		}
	}
	return out
}
