// Package dcom is the server side of DCOM ([MS-DCOM]): how a client gets from the name of a class to calls of an object's methods, and how
// long the object lives.
//
// # For who builds a class
//
// A Class has a CLSID and interfaces, which are those of package server. A method's handler gets the stub as it came, with ORPCTHIS at its
// beginning, as go-msrpc's types decode it, and answers with ORPCTHAT. It is called only for a live reference to that interface which
// the caller himself has got; the header has been checked. Objects have no state: whoever activates a class gets references of his own to
// what is always the same. Where the authentication level is too low a handler refuses in its own words, by an HRESULT; Least is what it
// says, and packet integrity at least is what it takes to have a reference at all.
//
//	x, err := dcom.New(dcom.Options{Names: []string{"enroll.corp.example", "enroll"}, Port: 49200, Classes: []dcom.Class{{
//		Name: "CCertRequestD", CLSID: pdu.MustUUID("d99e6e74-fc88-11d0-b498-00a0c90312f3"), Interfaces: []server.Interface{d, d2}}}})
//	x.RegisterResolver(mapper) // the server of port 135
//	x.RegisterObjects(calls)   // the server of Port
//
// # Who refers to what
//
// A reference is an IPID, random, for one interface of one object of one caller (his SID): another one's, or one for another interface,
// is as good as none. Whatever a client has, it loses by releasing it, by being silent for three ping periods, and by asking for more
// objects than MaxPerCaller: then its own object that was idle longest goes, so that a client that dies without releasing what it has
// does not lock itself out. Where all callers together have MaxObjects, a client without any gets the place of an object whose client has
// missed a ping, or of one of those that have very many; if there is none, RPC_S_SERVER_TOO_BUSY.
//
// Nothing is given to the network by this package: the servers that it is registered at do that, and the limits of theirs apply.
package dcom

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	msdcom "github.com/oiweiwei/go-msrpc/msrpc/dcom"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// Class is a COM class that clients can activate.
type Class struct {
	Name       string // "CCertRequestD", for logs
	CLSID      pdu.UUID
	Interfaces []server.Interface // their Syntax has the IID; IUnknown goes without saying
}

// Options of New. Zero values are the defaults.
type Options struct {
	Names   []string // of this machine, as clients reach it: the fully qualified one first
	Port    uint16   // where RegisterObjects' server listens
	Address net.IP   // where it listens; nil or unspecified for all that the machine has
	Classes []Class
	Now     func() time.Time

	MaxPerCaller int // objects, and ping sets, of one account; 256
	MaxObjects   int // of all; 131072, which are 90 MB. Ping sets are half as many
	MaxPinged    int // objects in all ping sets of one account; 4096. Of all: 128 times as many
}

// Timing ([MS-DCOM] 3.1.2.2): a client pings once in a period, and what it has lives for three.
const (
	pingPeriod = 120 * time.Second
	lifetime   = 3 * pingPeriod
)

// Exporter is an object exporter with its object resolver and activator ([MS-DCOM] 3.1.1, 3.1.2). All methods are safe for concurrent use.
type Exporter struct {
	classes  map[pdu.UUID]*class
	offered  []server.Interface // of classes, checked
	oxid     uint64
	unknown  pdu.UUID // IPID of IRemUnknown and IRemUnknown2
	opts     Options
	resolver *msdcom.DualStringArray
	table    *table
}

// class is a Class with its interfaces' IIDs.
type class struct {
	name  string
	clsid pdu.UUID
	iids  map[pdu.UUID]string
}

// New returns an exporter.
func New(opts Options) (*Exporter, error) {
	if len(opts.Names) == 0 || opts.Port == 0 {
		return nil, errors.New("DCOM: clients must be told a name and a port of this machine, and there is none")
	}
	for _, d := range []struct {
		value *int
		other int
	}{{&opts.MaxPerCaller, 256}, {&opts.MaxObjects, 131072}, {&opts.MaxPinged, 4096}} {
		if *d.value == 0 {
			*d.value = d.other
		}
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	x := &Exporter{classes: map[pdu.UUID]*class{}, oxid: random64(), unknown: newIPID(), table: newTable(opts), opts: opts}
	x.resolver = bindings(opts.Names, 0, "")
	seen := map[pdu.UUID]string{iidUnknown: "DCOM", iidClassFactory: "DCOM", iidRemUnknown: "DCOM", iidRemUnknown2: "DCOM"}
	for _, c := range opts.Classes {
		if x.classes[c.CLSID] != nil {
			return nil, fmt.Errorf("DCOM: the classes %s and %s both have the CLSID %s", x.classes[c.CLSID].name, c.Name, c.CLSID)
		}
		k := &class{name: c.Name, clsid: c.CLSID, iids: map[pdu.UUID]string{iidUnknown: "IUnknown"}}
		for _, i := range c.Interfaces {
			if other, ok := seen[i.Syntax.UUID]; ok || i.Syntax.Major != 0 || i.Syntax.Minor != 0 {
				return nil, fmt.Errorf("DCOM: class %s: the interface %s (%s) has a version, or is one of %s already", c.Name, i.Name, i.Syntax, other)
			}
			seen[i.Syntax.UUID], k.iids[i.Syntax.UUID] = c.Name, i.Name
			i.Handle = x.guard(i.Handle)
			x.offered = append(x.offered, i)
		}
		x.classes[c.CLSID] = k
	}
	return x, nil
}

// RegisterResolver adds the object resolver and the activator to the server of port 135 ([MS-DCOM] 1.9).
func (x *Exporter) RegisterResolver(s *server.Server) {
	s.Register(x.objectExporter())
	s.Register(x.activator())
}

// RegisterObjects adds the interfaces of the classes, and those of COM itself, to the server of Options.Port.
func (x *Exporter) RegisterObjects(s *server.Server) {
	s.Register(x.remUnknown("IRemUnknown", iidRemUnknown, false))
	s.Register(x.remUnknown("IRemUnknown2", iidRemUnknown2, true))
	s.Register(x.classFactory())
	for _, i := range x.offered {
		s.Register(i)
	}
}

// Stats is what there is at a moment.
type Stats struct{ Objects, PingSets int }

// Stats returns what there is.
func (x *Exporter) Stats() Stats {
	t := x.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	return Stats{len(t.objects), len(t.sets)}
}

// newIPID is one that nobody can guess ([MS-DCOM] 2.2.18.2 asks for a unique one).
func newIPID() (u pdu.UUID) {
	rand.Read(u[:])
	return u
}

// random64 is an OXID, OID or SETID; never 0.
func random64() uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}
