package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

func quick() Config {
	return Config{Timeout: 2 * time.Second, Poll: 20 * time.Millisecond, FailBack: 100 * time.Millisecond}
}

func TestAnotherControllerTakesOverAndTheFirstComesBack(t *testing.T) {
	a, b := newFakeDC(t, "a.fake.test"), newFakeDC(t, "b.fake.test")
	b.set(func(b *fakeDC) { b.objects = append(b.objects, fakeOID("1.2.4", "7")) })
	log := &captured{}
	d := fakeForest(t, quick(), log, a, b)
	run(t, d)
	eventually(t, "the first controller's state", func() bool { return oids(d) == "1.2.3" && d.Status().Preferred })
	a.die()
	eventually(t, "the second controller's state", func() bool { return oids(d) == "1.2.3 1.2.4" })
	if s := d.Status(); s.Server != b.url() || s.Preferred || s.Controller != "b.fake.test" {
		t.Errorf("status %+v", s)
	}
	a.revive()
	eventually(t, "the first controller again", func() bool { return d.Status().Server == a.url() && oids(d) == "1.2.3" })
	time.Sleep(300 * time.Millisecond)
	if n := log.count("back on a better"); n != 1 {
		t.Errorf("went back %d times", n)
	}
}

func TestAControllerThatTakesRequestsAndSaysNothingIsLeftWithinSeconds(t *testing.T) {
	a, b := newFakeDC(t, "a.fake.test"), newFakeDC(t, "b.fake.test")
	config := quick()
	config.Timeout = time.Minute // a hanging controller must not need that
	log := &captured{}
	d := fakeForest(t, config, log, a, b)
	run(t, d)
	eventually(t, "the first controller's state", func() bool { return d.Status().Server == a.url() && d.Snapshot() != nil })
	a.set(func(a *fakeDC) { a.hang = true })
	eventually(t, "the second controller", func() bool { return d.Status().Server == b.url() })
	// It cannot be gone back to before it answers.
	time.Sleep(time.Second)
	if s := d.Status(); s.Server != b.url() || s.Err != nil || log.count("back on a better") > 0 {
		t.Errorf("status %+v, log:\n%s", s, log)
	}
}

func TestWithoutAnyControllerTheSnapshotStaysAndAges(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	d := fakeForest(t, quick(), nil, a)
	run(t, d)
	eventually(t, "a snapshot", func() bool { return d.Snapshot() != nil })
	a.die()
	eventually(t, "an error", func() bool { return d.Status().Err != nil })
	taken := d.Snapshot().Taken
	time.Sleep(200 * time.Millisecond)
	if s := d.Status(); oids(d) != "1.2.3" || !d.Snapshot().Taken.Equal(taken) || s.Age < 200*time.Millisecond || s.Server != "" {
		t.Errorf("status %+v, taken %v", s, taken)
	}
	if _, err := d.Subject(t.Context(), "S-1-5-21-1-2-3-4"); hresult.From(err).Code != hresult.ServerUnavailable {
		t.Errorf("an account: %v", err)
	}
}

// Limits of age compare with Taken: a state that is confirmed all the time must not grow old.
func TestAConfirmedSnapshotStaysYoungWithoutChangingItsContents(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	d := fakeForest(t, quick(), nil, a)
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := d.Snapshot()
	d.confirm(first.Taken.Add(confirmEvery - time.Second))
	if d.Snapshot() != first || !d.Status().Checked.Equal(first.Taken.Add(confirmEvery-time.Second)) {
		t.Error("a new snapshot for each confirmation")
	}
	d.confirm(first.Taken.Add(confirmEvery))
	second := d.Snapshot()
	if second == first || !second.Taken.Equal(first.Taken.Add(confirmEvery)) || fmt.Sprintf("%p", first.OIDs) != fmt.Sprintf("%p", second.OIDs) {
		t.Errorf("taken %v, then %v", first.Taken, second.Taken)
	}
	// A full read of the same on another USN shares contents too; one of something else does not.
	a.set(func(a *fakeDC) { a.usn++; a.objects = []*ldap.Entry{fakeOID("1.2.3", "101")} })
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := d.Snapshot()
	if third == second || third.USN != 1001 || fmt.Sprintf("%p", first.OIDs) != fmt.Sprintf("%p", third.OIDs) {
		t.Error("the same contents are built again")
	}
	a.set(func(a *fakeDC) { a.objects = []*ldap.Entry{fakeOID("1.2.5", "102")} })
	if err := d.Refresh(t.Context()); err != nil || oids(d) != "1.2.5" {
		t.Errorf("%s, %v", oids(d), err)
	}
}

func TestADatabaseThatWentBackInTimeIsNoticed(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	log := &captured{}
	d := fakeForest(t, quick(), log, a)
	run(t, d)
	eventually(t, "a snapshot", func() bool { return d.Snapshot() != nil })
	a.set(func(a *fakeDC) { a.usn += 50 })
	eventually(t, "the newer USN", func() bool { d.reading.Lock(); defer d.reading.Unlock(); return d.seen.usn == 1050 })
	// Even with the objects' own versions the same.
	a.set(func(a *fakeDC) { a.usn -= 40; a.objects[0] = fakeOID("1.2.9", "100") })
	a.set(func(a *fakeDC) { a.objects[0].DN = fakeOID("1.2.3", "").DN })
	eventually(t, "USN rollback", func() bool { return d.Status().Rollback == "a.fake.test" })
	eventually(t, "a full read", func() bool { return oids(d) == "1.2.9" })
	time.Sleep(100 * time.Millisecond)
	if n := log.count("USN rollback on a.fake.test"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
	// Promoted anew, it has a new database, whose numbers are its own.
	a.set(func(a *fakeDC) { a.usn, a.invocation = 5, "another" })
	a.cut()
	eventually(t, "all is well", func() bool { return d.Status().Rollback == "" })
	if n := log.count("USN rollback"); n != 1 {
		t.Errorf("a new database is taken for an old one:\n%s", log)
	}
}

// records is a DNS that knows some SRV records.
type records map[string][]*net.SRV

func (r records) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if found := r["_"+service+"._"+proto+"."+name]; found != nil {
		return "", found, nil
	}
	return "", nil, errors.New("no such host")
}

func TestControllersOfTheSiteComeFirst(t *testing.T) {
	srv := func(host string, priority uint16) *net.SRV {
		return &net.SRV{Target: host + ".fake.test.", Port: 389, Priority: priority}
	}
	const site, all = "_ldap._tcp.Paris._sites.dc._msdcs.fake.test", "_ldap._tcp.dc._msdcs.fake.test"
	local, remote := newFakeDC(t, "paris.fake.test"), newFakeDC(t, "tokyo.fake.test")
	dns := records{site: {srv("paris", 100)}, all: {srv("Tokyo", 0), srv("paris", 0), srv("lima", 0), srv("spare", 10)}}
	config := quick()
	config.Domain, config.Site = "fake.test", "Paris"
	d := fakeForest(t, config, nil, local, remote)
	d.resolver = dns
	list, err := d.candidates(t.Context())
	want := []candidate{{"ldap://paris.fake.test:389", 0}, {"ldap://tokyo.fake.test:389", 1}, {"ldap://lima.fake.test:389", 1}, {"ldap://spare.fake.test:389", 2}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("%v, %v", list, err)
	}
	run(t, d)
	eventually(t, "the site's controller", func() bool { return strings.Contains(d.Status().Server, "paris") })
	local.die()
	eventually(t, "another site's", func() bool { return strings.Contains(d.Status().Server, "tokyo") })
	clear(dns) // mostly runs on the controllers
	local.revive()
	eventually(t, "the site's again, without DNS", func() bool { return strings.Contains(d.Status().Server, "paris") })

	nowhere := fakeForest(t, config, nil)
	nowhere.resolver = dns
	if _, err := nowhere.candidates(t.Context()); err == nil || !strings.Contains(err.Error(), "in DNS") {
		t.Errorf("without DNS: %v", err)
	}
	config.Site = "Atlantis"
	other := fakeForest(t, config, nil)
	other.resolver = records{all: {srv("tokyo", 0)}}
	if list, err := other.candidates(t.Context()); err != nil || len(list) != 1 || list[0].rank != 0 {
		t.Errorf("a site that is not in DNS: %v, %v", list, err)
	}
}
