package dcom

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

func TestReferencesAreCountedForEachInterface(t *testing.T) {
	l := newLab(t, nil)
	d2 := l.d2(alice)
	out, code := l.table.query(alice, d2.ipid, []pdu.UUID{iidD, iidD, iidClassFactory}, 2)
	if code != hresult.OK || out[0].ref.ipid != out[1].ref.ipid || out[0].ref.oid != d2.oid || out[2].code != codeNoInterface {
		t.Fatalf("%+v, %v", out, code)
	}
	d := out[0].ref
	if codes := l.table.addReferences(alice, []change{{d.ipid, 1, 2}, {d.ipid, 1<<32 - 1, 0}, {l.unknown, 1, 0}}); codes[0] != hresult.OK || codes[1] != codeOutOfMemory || codes[2] != codeObjectNotReg {
		t.Errorf("%v", codes)
	}
	if _, code := l.table.query(alice, d2.ipid, []pdu.UUID{iidD}, 1<<32-1); code != codeOutOfMemory {
		t.Error(code)
	}
	l.table.release(alice, []change{{d2.ipid, 1000, 1000}})
	if l.live(alice, d2) || !l.table.live(alice, d.ipid, iidD) {
		t.Error("the interface that was released is there, or the other is not")
	}
	l.table.release(alice, []change{{d.ipid, 5, 0}}) // 2 + 2 + 1, and 2 private ones
	if !l.table.live(alice, d.ipid, iidD) {
		t.Error("private references do not count")
	}
	l.table.release(bob, []change{{d.ipid, 0, 2}})
	l.table.release(alice, []change{{d.ipid, 0, 1}, {d.ipid, 0, 1}, {d.ipid, 1, 1}})
	if l.Stats() != (Stats{}) || len(l.table.ipids) != 0 || len(l.table.owners) != 0 {
		t.Errorf("%+v", l.Stats())
	}
}

func TestOnesOwnIdlestObjectGoesFirst(t *testing.T) {
	l := newLab(t, func(o *Options) { o.MaxPerCaller, o.MaxObjects = 3, 5 })
	other := l.d2(bob)
	var mine []reference
	for range 3 {
		mine = append(mine, l.d2(alice))
		l.now = l.now.Add(time.Second)
	}
	l.live(alice, mine[0]) // in use
	for range 50 {         // a client that dies each time without releasing what it has
		mine = append(mine, l.d2(alice))
		if !l.live(alice, mine[0]) || !l.live(bob, other) || l.Stats().Objects != 4 {
			t.Fatalf("%+v", l.Stats())
		}
	}
	if l.live(alice, mine[1]) || l.live(alice, mine[2]) {
		t.Error("idle objects were kept")
	}
}

func TestWhereAllIsTakenTheSilentGiveWay(t *testing.T) {
	l := newLab(t, func(o *Options) { o.MaxPerCaller, o.MaxObjects = 3, 4 })
	var crowd []reference
	for range 3 {
		crowd = append(crowd, l.d2(alice))
	}
	first := l.d2(bob)
	if _, code := l.table.activate("S-1-5-21-9", l.classes[classD], false, []pdu.UUID{iidD2}); code != hresult.ServerTooBusy {
		t.Errorf("%v, while all is in use", code)
	}
	second := l.d2(bob) // in the place of his own
	if l.live(bob, first) || !l.live(bob, second) {
		t.Error("another's object was taken")
	}
	l.now = l.now.Add(pingPeriod + time.Second)
	l.live(alice, crowd[0])
	l.live(bob, second)
	third := l.d2("S-1-5-21-9")
	if !l.live("S-1-5-21-9", third) || l.live(alice, crowd[1]) || !l.live(alice, crowd[0]) || !l.live(alice, crowd[2]) || !l.live(bob, second) {
		t.Error("not the one that missed a ping, and was idle longest, was taken")
	}
}

// TestManyAccountsDoNotLockOthersOut has accounts that take all there is, and keep it alive.
func TestManyAccountsDoNotLockOthersOut(t *testing.T) {
	l := newLab(t, func(o *Options) { o.MaxPerCaller, o.MaxObjects, o.MaxPinged = 32, 64, 1 })
	for _, sid := range []security.SID{alice, bob} {
		for range 32 {
			l.table.complexPing(sid, pings{sequence: 1, add: []uint64{l.d2(sid).oid}})
		}
	}
	l.table.maxPinged = l.table.pinnedOID // nor may any more objects be pinged
	ref := l.d2("S-1-5-21-9")
	if !l.live("S-1-5-21-9", ref) {
		t.Fatal("a third account has no object")
	}
	l.table.maxOwnedPinged = 100
	set, status := l.table.complexPing("S-1-5-21-9", pings{sequence: 1, add: []uint64{ref.oid}})
	if status != 0 || l.table.sets[set] == nil || len(l.table.sets[set].oids) != 1 {
		t.Errorf("the third account cannot ping: %d", status)
	}
	if len(l.table.objects) > 64 || len(l.table.sets) > 32 {
		t.Errorf("%d objects, %d sets", len(l.table.objects), len(l.table.sets))
	}
}

func TestWhatIsNotPingedEnds(t *testing.T) {
	l := newLab(t, nil)
	pinged, used, silent := l.d2(alice), l.d2(alice), l.d2(alice)
	set, status := l.table.complexPing(alice, pings{sequence: 1, add: []uint64{pinged.oid, 4711}})
	if status != 0 || set == 0 {
		t.Fatal(status)
	}
	for range 4 {
		l.now = l.now.Add(pingPeriod - time.Second)
		if status := l.table.simplePing(alice, set); status != 0 || !l.live(alice, used) {
			t.Fatal(status)
		}
	}
	if l.live(alice, silent) || l.Stats() != (Stats{Objects: 2, PingSets: 1}) {
		t.Errorf("%+v", l.Stats())
	}
	l.now = l.now.Add(lifetime - time.Second)
	if !l.live(alice, pinged) {
		t.Error("what was pinged has ended")
	}
	l.now = l.now.Add(time.Second)
	if status := l.table.simplePing(alice, set); status != statusInvalidSet || l.live(alice, used) {
		t.Errorf("0x%x for a set that has ended", status)
	}
	l.now = l.now.Add(lifetime)
	if l.live(alice, pinged) || l.Stats() != (Stats{}) || len(l.table.owners) != 0 || l.table.pinnedOID != 0 {
		t.Errorf("%+v", l.Stats())
	}
}

func TestAPingSetIsItsOwnersAlone(t *testing.T) {
	l := newLab(t, nil)
	mine, his := l.d2(alice), l.d2(bob)
	set, _ := l.table.complexPing(alice, pings{add: []uint64{mine.oid, his.oid}}) // a machine may ping for its users
	for _, id := range []uint64{set, 0, set + 1} {
		if status := l.table.simplePing(bob, id); status != statusInvalidSet {
			t.Errorf("set %d: 0x%x", id, status)
		}
	}
	if _, status := l.table.complexPing(bob, pings{set: set, remove: []uint64{mine.oid}}); status != statusInvalidSet {
		t.Errorf("0x%x", status)
	}
	l.table.release(bob, []change{{his.ipid, 5, 0}})
	l.now = l.now.Add(pingPause)
	if status := l.table.simplePing(alice, set); status != 0 || l.table.pinnedOID != 1 {
		t.Errorf("0x%x, %d objects are pinged", status, l.table.pinnedOID)
	}
}

func TestPingsInTheirOrder(t *testing.T) {
	l := newLab(t, nil)
	a, b := l.d2(alice), l.d2(alice)
	set, _ := l.table.complexPing(alice, pings{sequence: 65535, add: []uint64{a.oid, a.oid}})
	in := func(want int) {
		t.Helper()
		if got := len(l.table.sets[set].oids); got != want || l.table.pinnedOID != want {
			t.Errorf("%d objects in the set, want %d", got, want)
		}
	}
	in(1)
	ping := func(sequence uint16, add, remove []uint64) {
		t.Helper()
		if id, status := l.table.complexPing(alice, pings{set, sequence, add, remove}); id != set || status != 0 {
			t.Errorf("set %d, 0x%x", id, status)
		}
	}
	ping(2, []uint64{b.oid}, nil) // the numbers wrap around
	in(2)
	ping(1, nil, []uint64{b.oid}) // late
	in(2)
	ping(2, []uint64{a.oid, b.oid}, []uint64{b.oid}) // added, and deleted
	in(1)
}

func TestPingSetsAreLimited(t *testing.T) {
	l := newLab(t, func(o *Options) { o.MaxPerCaller, o.MaxObjects, o.MaxPinged = 2, 6, 3 })
	one, two := l.d2(alice), l.d2(alice)
	sets := make([]uint64, 5)
	for i := range sets {
		var status uint32
		if sets[i], status = l.table.complexPing(alice, pings{add: []uint64{one.oid}}); status != 0 {
			t.Fatal(status)
		}
		l.now = l.now.Add(time.Second)
	}
	if l.table.simplePing(alice, sets[2]) != statusInvalidSet || l.table.simplePing(alice, sets[3]) != 0 || l.Stats().PingSets != 2 {
		t.Errorf("%+v", l.Stats())
	}
	if _, status := l.table.complexPing(alice, pings{set: sets[3], add: []uint64{two.oid}}); status != 0 {
		t.Error(status)
	}
	if _, status := l.table.complexPing(alice, pings{set: sets[4], add: []uint64{two.oid}}); status != statusOutOfMemory {
		t.Errorf("0x%x for the fourth of three", status)
	}
	if _, status := l.table.complexPing(bob, pings{add: []uint64{two.oid}}); status != 0 {
		t.Errorf("0x%x: one caller has exhausted another's", status)
	}
	if _, status := l.table.complexPing("S-1-5-21-9", pings{}); status != statusOutOfMemory {
		t.Errorf("0x%x for the fourth set of three in all", status)
	}
	if _, status := l.table.complexPing(bob, pings{}); status != 0 || l.Stats().PingSets != 3 {
		t.Errorf("0x%x: not in the place of his own", status)
	}
}

// TestOneCallerDoesNotKeepAnotherFromWorking has one account take all that it can get while another goes its way.
func TestOneCallerDoesNotKeepAnotherFromWorking(t *testing.T) {
	l := newLab(t, nil)
	const greedy = 8
	var work sync.WaitGroup
	stop := make(chan struct{})
	for range greedy {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				out, _ := l.table.activate(bob, l.classes[classD], false, []pdu.UUID{iidD2, iidD})
				for range 20 {
					l.table.complexPing(bob, pings{add: []uint64{out[0].ref.oid}})
				}
			}
		})
	}
	for range 2000 {
		ref := l.d2(alice)
		set, status := l.table.complexPing(alice, pings{add: []uint64{ref.oid}})
		if !l.live(alice, ref) || status != 0 || l.table.simplePing(alice, set) != 0 {
			t.Fatal("the object or the set of a caller is gone")
		}
		l.table.release(alice, []change{{ref.ipid, 5, 0}})
		if l.live(alice, ref) {
			t.Fatal("it was released")
		}
	}
	close(stop)
	work.Wait()
	if s := l.Stats(); s.Objects > 256 || s.PingSets > 512 { // fewer where the machine was slow
		t.Errorf("%+v", s)
	}
}

// TestTimeBySystemClock is without a clock of the tests' own.
func TestTimeBySystemClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(o *Options) { o.Now = nil })
		ref := l.d2(alice)
		for _, c := range []struct {
			wait time.Duration
			live bool
		}{{lifetime - time.Nanosecond, true}, {lifetime, false}} {
			time.Sleep(c.wait)
			if l.live(alice, ref) != c.live {
				t.Errorf("after %v: %v", c.wait, !c.live)
			}
		}
	})
}

// TestEndedObjectsGoLittleByLittle has nobody wait while all of a storm's objects end.
func TestEndedObjectsGoLittleByLittle(t *testing.T) {
	l := newLab(t, nil)
	for i := range 1000 {
		l.d2(security.SID("S-1-5-21-7-" + string(rune('A'+i%26)) + string(rune('A'+i/26))))
	}
	l.now = l.now.Add(lifetime)
	for want := 1000 - expireAtOnce; want > 0; want -= expireAtOnce {
		if got := l.Stats().Objects; got != want {
			t.Fatalf("%d objects, want %d", got, want)
		}
	}
	if l.Stats(); len(l.table.objects)+len(l.table.owners)+len(l.table.ipids)+l.table.used.Len() != 0 {
		t.Error("something is left")
	}
}

// TestManyActivateAtOnce is for the race detector: the bindings in the answers are common to all.
func TestManyActivateAtOnce(t *testing.T) {
	l := newLab(t, nil)
	stub := activationStub(t, instantiation(classD, iidD2, iidD))
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 50 {
				if _, err := l.call(alice, "IRemoteSCMActivator", 4, pdu.UUID{}, stub); err != nil {
					t.Error(err)
				}
				if _, err := l.call("", "IObjectExporter", 5, pdu.UUID{}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if l.Stats().Objects != 256 {
		t.Errorf("%+v", l.Stats())
	}
}

func TestTheAddressThatAClientHasReachedComesLast(t *testing.T) {
	for own, want := range map[string]string{"": "10.0.0.1[49200]", "::": "10.0.0.1[49200]", "10.0.0.1": "10.0.0.1[49200]", "10.0.0.2": "enroll[49200]"} {
		l := newLab(t, func(o *Options) { o.Address = net.ParseIP(own) })
		list := l.exporter(&server.Call{Local: &net.TCPAddr{IP: net.ParseIP("10.0.0.1"), Port: 135}}).GetStringBindings()
		if got := list[len(list)-1].NetworkAddr; got != want || list[0].NetworkAddr != "enroll.corp.example[49200]" {
			t.Errorf("%q: %s", own, got)
		}
	}
}
