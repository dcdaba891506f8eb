package dcom

import (
	"container/list"
	"time"

	"github.com/enrollgate/enrollgate/templates/security"
)

// pingPause is how much more often than once in so long a set need not be looked through.
const pingPause = 5 * time.Second

// pingSet are the objects that a client pings at one go ([MS-DCOM] 3.1.2.1, SETID table). It may have objects of others than its owner: a
// machine can ping for its users. Who knows an OID keeps its object alive by it, and no more.
type pingSet struct {
	id             uint64
	owner          security.SID
	oids           map[uint64]struct{}
	sequence       uint16
	used           time.Time
	walked         time.Time
	place, ofOwner *list.Element
}

// simplePing is [MS-DCOM] 3.1.2.5.1.2.
func (t *table) simplePing(sid security.SID, id uint64) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.set(sid, id)
	if s == nil {
		return statusInvalidSet
	}
	t.ping(s)
	return 0
}

// pings is what ComplexPing asks for.
type pings struct {
	set         uint64 // 0 for a new one
	sequence    uint16
	add, remove []uint64
}

// complexPing is [MS-DCOM] 3.1.2.5.1.3. It returns the set's number. OIDs that there are not, or no longer, are passed over.
func (t *table) complexPing(sid security.SID, p pings) (uint64, uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, stale := t.set(sid, p.set), false
	switch {
	case s == nil && p.set != 0:
		return p.set, statusInvalidSet
	case s == nil:
		if s = t.addSet(sid); s == nil {
			return 0, statusOutOfMemory
		}
	default:
		stale = int16(p.sequence-s.sequence) < 0 //nolint:gosec // the numbers wrap around
	}
	if stale { // a later call has been served: this one says no more than that the client is alive
		t.ping(s)
		return s.id, 0
	}
	s.sequence = p.sequence
	var status uint32
	for _, oid := range p.add {
		if !t.join(s, oid) {
			status = statusOutOfMemory
			break
		}
	}
	for _, oid := range p.remove {
		t.leave(s, oid)
	}
	t.ping(s)
	return s.id, status
}

// set returns a set of a caller's own. mu is held.
func (t *table) set(sid security.SID, id uint64) *pingSet {
	t.expire()
	s := t.sets[id]
	if s == nil || sid == "" || s.owner != sid || t.over(s.used) {
		return nil
	}
	return s
}

// ping notes that the client of a set is alive, and with it that of its objects. mu is held.
func (t *table) ping(s *pingSet) {
	now := t.now()
	s.used = now
	t.pinged.MoveToBack(s.place)
	t.owners[s.owner].sets.MoveToBack(s.ofOwner)
	if now.Sub(s.walked) < pingPause {
		return
	}
	s.walked = now
	for oid := range s.oids {
		if o := t.object(oid); o != nil {
			t.use(o)
		} else {
			t.leave(s, oid)
		}
	}
}

// join adds an object to a set; false where the caller, or all, have too many. mu is held.
func (t *table) join(s *pingSet, oid uint64) bool {
	o := t.object(oid)
	if o == nil {
		return true
	}
	t.use(o)
	if _, ok := s.oids[oid]; ok {
		return true
	}
	own := t.owners[s.owner]
	if own.pinged >= t.maxOwnedPinged || t.pinnedOID >= t.maxPinged && own.pinged >= ownedAlways {
		return false
	}
	own.pinged++
	t.pinnedOID++
	s.oids[oid] = struct{}{}
	return true
}

// leave takes an object out of a set. mu is held.
func (t *table) leave(s *pingSet, oid uint64) {
	if _, ok := s.oids[oid]; ok {
		delete(s.oids, oid)
		t.owners[s.owner].pinged--
		t.pinnedOID--
	}
}

// addSet makes a set; a caller with too many loses the one that was idle longest. where all together have too many, who
// has most does. nil where nobody has many. mu is held.
func (t *table) addSet(sid security.SID) *pingSet {
	own := t.owners[sid]
	if own != nil && own.sets.Len() > 0 && (own.sets.Len() >= t.maxOwned || len(t.sets) >= t.maxSets) {
		t.removeSet(own.sets.Front().Value.(*pingSet))
	}
	if len(t.sets) >= t.maxSets {
		most := t.crowd(func(own *owner) *list.List { return own.sets })
		if most == nil {
			return nil
		}
		t.removeSet(most.Front().Value.(*pingSet))
	}
	own = t.owner(sid)
	s := &pingSet{id: random64(), owner: sid, oids: map[uint64]struct{}{}, used: t.now()}
	s.place, s.ofOwner = t.pinged.PushBack(s), own.sets.PushBack(s)
	t.sets[s.id] = s
	return s
}

// removeSet forgets a set; its objects live on for as long as they were used. mu is held.
func (t *table) removeSet(s *pingSet) {
	own := t.owners[s.owner]
	own.pinged -= len(s.oids)
	t.pinnedOID -= len(s.oids)
	delete(t.sets, s.id)
	t.pinged.Remove(s.place)
	own.sets.Remove(s.ofOwner)
	t.tidy(s.owner, own)
}
