package escrow_test

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// mailroom is an escrow with one policy and a clock that the test moves.
type mailroom struct {
	*escrow.Escrow
	*vault
	imported int
}

func newMailroom(t testing.TB, required, minimum int) *mailroom {
	t.Helper()
	m := &mailroom{vault: newVault(t)}
	var err error
	m.Escrow, err = escrow.New(background, escrow.Options{DB: m.db, Secret: []byte("test secret"), Now: func() time.Time { return m.now }, Policies: []escrow.Policy{
		{Name: "mail", Agents: []string{escrow.AllAgents}, Required: required, Minimum: minimum, Managers: []string{"m"}, Approvers: []string{"a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// designate makes agents whose certificates end after so many days.
func (m *mailroom) designate(t testing.TB, days ...int) (out []*x509.Certificate) {
	t.Helper()
	for i, n := range days {
		_, cert := testpki.Agent(t, fmt.Sprintf("kra%d", i+1), m.now.Add(-time.Hour), m.now.AddDate(0, 0, n).Add(time.Hour))
		if err := m.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

func (m *mailroom) archiveOne(t testing.TB) (*escrow.Entry, *rsa.PrivateKey) {
	t.Helper()
	m.imported++
	key, cert := testpki.Agent(t, fmt.Sprintf("user%d", m.imported), m.now.Add(-time.Hour), m.now.AddDate(1, 0, 0))
	id, err := m.Import(background, key, cert, alice, "test")
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.Get(background, id)
	if err != nil {
		t.Fatal(err)
	}
	return e, key
}

func (m *mailroom) health(t testing.TB) *escrow.Health {
	t.Helper()
	holdings, err := m.Holdings(background)
	if err != nil {
		t.Fatal(err)
	}
	h, err := m.Health(background, holdings, 60*24*time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(h.Agents, func(a, b escrow.AgentHealth) int { return strings.Compare(a.Subject, b.Subject) })
	return h
}

func TestThatAgentsEndIsSaidSixtyDaysBeforeAndArchivingGoesOnUntilThen(t *testing.T) {
	m := newMailroom(t, 2, 2)
	m.designate(t, 100, 100, 400)
	m.archiveOne(t)
	if h := m.health(t); h.Level != escrow.Healthy || len(h.Warnings) != 0 || h.Policies[0].Valid != 3 || h.Agents[0].Together != 1 || h.Agents[0].Needed != 0 {
		t.Errorf("100 days before: %+v", h)
	}
	m.now = m.now.AddDate(0, 0, 50)
	h := m.health(t)
	if h.Level != escrow.Soon || h.Policies[0].Level != escrow.Soon || len(h.Warnings) != 3 || h.Agents[0].State != "expiring" || h.Agents[0].Days != 50 || h.Agents[2].State != "valid" ||
		!strings.Contains(h.Warnings[2].Text, "will have 1 valid agents") {
		t.Errorf("50 days before: %+v", h)
	}
	m.archiveOne(t)
	m.now = m.now.AddDate(0, 0, 51)
	h = m.health(t)
	if h.Level != escrow.Critical || h.Policies[0].Valid != 1 || h.Agents[0].State != "expired" || h.Agents[0].Days != 0 || h.Policies[0].BelowQuorum != 0 {
		t.Errorf("after the end: %+v", h)
	}
	_, cert := testpki.Agent(t, "user", m.now.Add(-time.Hour), m.now.AddDate(1, 0, 0))
	if err := m.ReadyFor(&m.Policies()[0]); err == nil || hresult.From(err).Code != hresult.NoValidKRA || !strings.Contains(err.Error(), "1 key recovery agents have a valid certificate, 2 are needed") {
		t.Errorf("with one valid agent: %v, %v", err, cert.Subject)
	}
}

func TestRecordsThatTooFewAgentsCanOpenAreCounted(t *testing.T) {
	m := newMailroom(t, 2, 2)
	agents := m.designate(t, 400, 400, 400)
	m.archiveOne(t)
	m.archiveOne(t)
	if err := m.RemoveAgent(background, escrow.Fingerprint(agents[0]), "test"); err != nil {
		t.Fatal(err)
	}
	if h := m.health(t); h.Agents[0].Needed != 2 || h.Agents[1].Needed != 2 || h.Policies[0].BelowQuorum != 0 {
		t.Errorf("two of three are left: %+v", h)
	}
	if err := m.RemoveAgent(background, escrow.Fingerprint(agents[1]), "test"); err != nil {
		t.Fatal(err)
	}
	h := m.health(t)
	if h.Level != escrow.Critical || h.Policies[0].BelowQuorum != 2 || h.Policies[0].Records != 2 {
		t.Errorf("one of three is left: %+v", h)
	}
	if !slices.ContainsFunc(h.Warnings, func(w escrow.Warning) bool { return strings.Contains(w.Fix, "CN=kra1; CN=kra2") }) {
		t.Errorf("it is not said who could help: %+v", h.Warnings)
	}
	if list, err := m.BelowQuorum(background, 1); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := m.BelowQuorum(background, 10); err != nil || len(list) != 2 || list[0].Owner != alice.Name {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAnAgentWhoseCertificateWasRenewedWithTheSameKeyOpensOldRecords(t *testing.T) {
	m := newMailroom(t, 1, 1)
	key, old := testpki.Agent(t, "kra", m.now.Add(-time.Hour), m.now.AddDate(1, 0, 0))
	if err := m.AddAgent(background, old, "test"); err != nil {
		t.Fatal(err)
	}
	e, want := m.archiveOne(t)
	next := testpki.Renewed(t, old, key)
	if err := m.AddAgent(background, next, "test"); err != nil {
		t.Fatal(err)
	}
	if err := m.RemoveAgent(background, escrow.Fingerprint(old), "test"); err != nil {
		t.Fatal(err)
	}
	r, err := m.Recover(background, e, key, next, "test", "renewed")
	if err != nil || !want.Equal(r.Key) {
		t.Errorf("%v", err)
	}
	if agents, err := m.RecipientsOf(background, e); err != nil || len(agents) != 1 || agents[0].Fingerprint != escrow.Fingerprint(old) {
		t.Errorf("%+v, %v", agents, err)
	}
	if h := m.health(t); h.Agents[0].Alone != 1 || h.Agents[0].Needed != 1 || h.Policies[0].BelowQuorum != 0 {
		t.Errorf("%+v", h)
	}
	if err := m.RemoveAgent(background, escrow.Fingerprint(next), "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Recover(background, e, key, old, "test", "dismissed"); err == nil || !strings.Contains(err.Error(), "no longer a designated") {
		t.Errorf("with neither certificate designated: %v", err)
	}
}

// While an old certificate and its renewal are both designated, the agent would have two of the two shares that it takes.
func TestAttackOneAgentWithTwoCertificatesIsAQuorum(t *testing.T) {
	m := newMailroom(t, 2, 2)
	key, old := testpki.Agent(t, "kra", m.now.Add(-time.Hour), m.now.AddDate(1, 0, 0))
	next := testpki.Renewed(t, old, key)
	for _, cert := range []*x509.Certificate{old, next} {
		if err := m.AddAgent(background, cert, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.ReadyFor(&m.Policies()[0]); err == nil {
		t.Fatal("one agent with two certificates counts as two")
	}
	other := m.designate(t, 400)[0]
	e, _ := m.archiveOne(t)
	record, err := quorum.Parse(e.Sealed())
	if err != nil {
		t.Fatal(err)
	}
	var holders []string
	for _, h := range record.Holders {
		holders = append(holders, h.Fingerprint)
	}
	want := []string{escrow.Fingerprint(next), escrow.Fingerprint(other)}
	slices.Sort(holders)
	slices.Sort(want)
	if !slices.Equal(holders, want) {
		t.Errorf("shares for %v, want %v", holders, want)
	}
}
