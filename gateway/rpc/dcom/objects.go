package dcom

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Reference counts.
const (
	activationReferences = 5       // public ones that an activation gives, as Windows does
	maxReferences        = 1 << 24 // of one interface
	ownedAlways          = 16      // objects, ping sets and objects pinged that an account keeps where others want some
)

// table has the objects and ping sets. Every object lives as long after it was used last, so that the order of use is that of expiry.
type table struct {
	now                                func() time.Time
	maxOwned, maxObjects, maxPinged    int
	maxSets, maxOwnedPinged, pinnedOID int

	mu      sync.Mutex // guards what follows
	objects map[uint64]*object
	ipids   map[pdu.UUID]*face
	sets    map[uint64]*pingSet
	owners  map[security.SID]*owner
	used    *list.List // of *object, the one that was idle longest first
	pinged  *list.List // of *pingSet, likewise
}

// owner is what one account has, idle longest first.
type owner struct {
	objects *list.List // of *object
	sets    *list.List // of *pingSet
	pinged  int        // objects in its sets
}

// object is what one activation gave one caller. It has no state: what it is for is who may call which interface.
type object struct {
	oid            uint64
	owner          security.SID
	class          *class
	factory        bool // of the class: it has IClassFactory and no more
	faces          []*face
	used           time.Time
	place, ofOwner *list.Element
}

// face is an interface of an object, with the client's references to it ([MS-DCOM] 3.1.1.1, IPID table).
type face struct {
	object          *object
	ipid, iid       pdu.UUID
	public, private uint64
}

func newTable(opts Options) *table {
	return &table{now: opts.Now, maxOwned: opts.MaxPerCaller, maxObjects: opts.MaxObjects, maxSets: max(1, opts.MaxObjects/2), maxOwnedPinged: opts.MaxPinged,
		maxPinged: 128 * opts.MaxPinged, objects: map[uint64]*object{}, ipids: map[pdu.UUID]*face{}, sets: map[uint64]*pingSet{}, owners: map[security.SID]*owner{},
		used: list.New(), pinged: list.New()}
}

// has tells whether the object has an interface.
func (o *object) has(iid pdu.UUID) bool {
	if o.factory {
		return iid == iidClassFactory || iid == iidUnknown
	}
	_, ok := o.class.iids[iid]
	return ok
}

// find returns the face for an IPID of a caller's own; nil otherwise. mu is held.
func (t *table) find(sid security.SID, ipid pdu.UUID) *face {
	t.expire()
	f := t.ipids[ipid]
	if f == nil || sid == "" || f.object.owner != sid || t.over(f.object.used) {
		return nil
	}
	t.use(f.object)
	return f
}

// live tells whether a caller may call an interface by an IPID. That is a use of the object ([MS-DCOM] 3.1.1.6.2).
func (t *table) live(sid security.SID, ipid, iid pdu.UUID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.find(sid, ipid)
	return f != nil && f.iid == iid
}

// use notes that a client is alive. mu is held.
func (t *table) use(o *object) {
	o.used = t.now()
	t.used.MoveToBack(o.place)
	t.owners[o.owner].objects.MoveToBack(o.ofOwner)
}

// over tells whether what was used last at some time is forgotten.
func (t *table) over(used time.Time) bool { return t.now().Sub(used) >= lifetime }

// object returns an object that is not forgotten. mu is held.
func (t *table) object(oid uint64) *object {
	if o := t.objects[oid]; o != nil && !t.over(o.used) {
		return o
	}
	return nil
}

// expireAtOnce is how many objects are forgotten at a time at most, so that nobody waits long for it.
const expireAtOnce = 64

// expire forgets what its clients have forgotten. mu is held.
func (t *table) expire() {
	for range expireAtOnce {
		e := t.used.Front()
		if e == nil || !t.over(e.Value.(*object).used) {
			break
		}
		t.remove(e.Value.(*object))
	}
	for range expireAtOnce {
		e := t.pinged.Front()
		if e == nil || !t.over(e.Value.(*pingSet).used) {
			break
		}
		t.removeSet(e.Value.(*pingSet))
	}
}

// add makes an object for a caller. mu is held.
func (t *table) add(sid security.SID, c *class, factory bool) (*object, hresult.Code) {
	t.expire()
	own := t.owners[sid]
	switch {
	case own != nil && own.objects.Len() > 0 && (own.objects.Len() >= t.maxOwned || len(t.objects) >= t.maxObjects):
		t.remove(own.objects.Front().Value.(*object))
	case len(t.objects) >= t.maxObjects:
		idle := t.used.Front().Value.(*object)
		if t.now().Sub(idle.used) <= pingPeriod {
			most := t.crowd(func(own *owner) *list.List { return own.objects })
			if most == nil {
				return nil, hresult.ServerTooBusy
			}
			idle = most.Front().Value.(*object)
		}
		t.remove(idle)
	}
	o := &object{oid: random64(), owner: sid, class: c, factory: factory, used: t.now()}
	own = t.owner(sid)
	o.place, o.ofOwner = t.used.PushBack(o), own.objects.PushBack(o)
	t.objects[o.oid] = o
	return o, hresult.OK
}

// crowd is what an account has of something that has more of it than any honest client needs; nil where none is found. It asks some accounts
// and not all, so that nobody waits long for it: where a few have nearly everything it will take a few times to find none of them.
func (t *table) crowd(of func(*owner) *list.List) (most *list.List) {
	asked := 0
	for _, own := range t.owners { // in no order
		if l := of(own); l.Len() > ownedAlways && (most == nil || l.Len() > most.Len()) {
			most = l
		}
		if asked++; asked == 64 {
			break
		}
	}
	return most
}

// owner returns what an account has. mu is held.
func (t *table) owner(sid security.SID) *owner {
	own := t.owners[sid]
	if own == nil {
		own = &owner{objects: list.New(), sets: list.New()}
		t.owners[sid] = own
	}
	return own
}

// remove forgets an object, and an account that has nothing more. mu is held.
func (t *table) remove(o *object) {
	for _, f := range o.faces {
		delete(t.ipids, f.ipid)
	}
	delete(t.objects, o.oid)
	t.used.Remove(o.place)
	own := t.owners[o.owner]
	own.objects.Remove(o.ofOwner)
	t.tidy(o.owner, own)
}

func (t *table) tidy(sid security.SID, own *owner) {
	if own.objects.Len() == 0 && own.sets.Len() == 0 {
		delete(t.owners, sid)
	}
}

// refer gives references to an interface of an object ([MS-DCOM] 3.1.1.5.6.1.1). mu is held.
func (t *table) refer(o *object, iid pdu.UUID, references uint32) (reference, hresult.Code) {
	if !o.has(iid) {
		return reference{}, codeNoInterface
	}
	var f *face
	if i := slices.IndexFunc(o.faces, func(f *face) bool { return f.iid == iid }); i >= 0 {
		f = o.faces[i]
	}
	if references > maxReferences || f != nil && f.public+uint64(references) > maxReferences {
		return reference{}, codeOutOfMemory
	}
	if f == nil {
		f = &face{object: o, ipid: newIPID(), iid: iid}
		o.faces = append(o.faces, f)
		t.ipids[f.ipid] = f
	}
	f.public += uint64(references)
	return reference{references, o.oid, f.ipid}, hresult.OK
}

// result is what became of one interface that was asked for.
type result struct {
	iid  pdu.UUID
	code hresult.Code
	ref  reference
}

// refers asks for several interfaces. mu is held.
func (t *table) refers(o *object, iids []pdu.UUID, references uint32) (out []result, some bool) {
	for _, iid := range iids {
		ref, code := t.refer(o, iid, references)
		some = some || code == hresult.OK
		out = append(out, result{iid, code, ref})
	}
	return out, some
}

// activate makes an object with references to the interfaces that were asked for; none where it has none of them.
func (t *table) activate(sid security.SID, c *class, factory bool, iids []pdu.UUID) ([]result, hresult.Code) {
	if !slices.ContainsFunc(iids, (&object{class: c, factory: factory}).has) {
		return nil, codeNoInterface
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	o, code := t.add(sid, c, factory)
	if code != hresult.OK {
		return nil, code
	}
	out, _ := t.refers(o, iids, activationReferences)
	return out, hresult.OK
}

// query asks for more interfaces of an object ([MS-DCOM] 3.1.1.5.6.1.1).
func (t *table) query(sid security.SID, ipid pdu.UUID, iids []pdu.UUID, references uint32) ([]result, hresult.Code) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.find(sid, ipid)
	if f == nil {
		return nil, codeInvalidObject
	}
	out, some := t.refers(f.object, iids, references)
	if !some && len(out) > 0 {
		return out, out[0].code
	}
	return out, hresult.OK
}

// change is REMINTERFACEREF ([MS-DCOM] 2.2.23).
type change struct {
	ipid            pdu.UUID
	public, private uint32
}

// addReferences is RemAddRef ([MS-DCOM] 3.1.1.5.6.1.2).
func (t *table) addReferences(sid security.SID, changes []change) []hresult.Code {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]hresult.Code, len(changes))
	for i, c := range changes {
		f := t.find(sid, c.ipid)
		switch {
		case f == nil:
			out[i] = codeObjectNotReg
		case f.public+uint64(c.public) > maxReferences || f.private+uint64(c.private) > maxReferences:
			out[i] = codeOutOfMemory
		default:
			f.public, f.private = f.public+uint64(c.public), f.private+uint64(c.private)
		}
	}
	return out
}

// release is RemRelease ([MS-DCOM] 3.1.1.5.6.1.3): an interface without references is gone, and an object without interfaces.
func (t *table) release(sid security.SID, changes []change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range changes {
		f := t.find(sid, c.ipid)
		if f == nil {
			continue
		}
		f.public -= min(f.public, uint64(c.public))
		f.private -= min(f.private, uint64(c.private))
		if f.public+f.private > 0 {
			continue
		}
		o := f.object
		delete(t.ipids, f.ipid)
		if o.faces = slices.DeleteFunc(o.faces, func(other *face) bool { return other == f }); len(o.faces) == 0 {
			t.remove(o)
		}
	}
}
