package ldapsync

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// fakeDC is a scripted domain controller for what no real one can be made to do: it answers searches, without a bind.
type fakeDC struct {
	host     string
	listener net.Listener

	mu         sync.Mutex
	usn        int64
	invocation string
	hang       bool // take requests, say nothing
	down       bool
	conns      []net.Conn
	objects    []*ldap.Entry // below CN=Public Key Services
	answer     func(base string, attributes []string) (entries []*ldap.Entry, referral string)
}

const fakeConfig = "CN=Configuration,DC=fake,DC=test"

func newFakeDC(t *testing.T, host string) *fakeDC {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeDC{host: host, listener: l, usn: 1000, invocation: "invocation of " + host,
		objects: []*ldap.Entry{fakeOID("1.2.3", "100")}}
	t.Cleanup(func() { _ = l.Close(); f.cut() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			if f.down {
				_ = c.Close()
			} else {
				f.conns = append(f.conns, c)
				go f.serve(c)
			}
			f.mu.Unlock()
		}
	}()
	return f
}

func fakeOID(oid, usn string) *ldap.Entry {
	return ldap.NewEntry("CN="+oid+",CN=OID,"+pkiBase(fakeConfig), map[string][]string{"objectClass": {"top", "msPKI-Enterprise-Oid"},
		"cn": {oid}, "msPKI-Cert-Template-OID": {oid}, "displayName": {"Jürgen's " + oid}, "uSNChanged": {usn}})
}

func (f *fakeDC) url() string { return "ldap://" + f.host }

// set changes the script.
func (f *fakeDC) set(change func(f *fakeDC)) {
	f.mu.Lock()
	change(f)
	f.mu.Unlock()
}

// cut ends all connections.
func (f *fakeDC) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
}

// die makes the controller unreachable, revive undoes it.
func (f *fakeDC) die() {
	f.set(func(f *fakeDC) { f.down = true })
	f.cut()
}
func (f *fakeDC) revive() { f.set(func(f *fakeDC) { f.down = false }) }

func (f *fakeDC) serve(c net.Conn) {
	defer c.Close()
	for {
		p, err := ber.ReadPacket(c)
		if err != nil || len(p.Children) < 2 || p.Children[1].Tag != ldap.ApplicationSearchRequest {
			return
		}
		id := p.Children[0].Value.(int64)
		base, attributes := p.Children[1].Children[0].Data.String(), []string{}
		for _, a := range p.Children[1].Children[7].Children {
			attributes = append(attributes, a.Data.String())
		}
		f.mu.Lock()
		hang := f.hang
		entries, referral := f.find(base, attributes)
		f.mu.Unlock()
		if hang {
			continue
		}
		var out []byte
		for _, e := range entries {
			out = append(out, fakeReply(id, entryPacket(e))...)
		}
		done := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultDone, nil, "")
		code := 0
		if referral != "" {
			code = ldap.LDAPResultReferral
		}
		done.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""))
		done.AppendChild(text(""))
		done.AppendChild(text("0000202B: RefErr"))
		if referral != "" {
			r := ber.Encode(ber.ClassContext, ber.TypeConstructed, 3, nil, "")
			r.AppendChild(text(referral))
			done.AppendChild(r)
		}
		if _, err := c.Write(append(out, fakeReply(id, done)...)); err != nil {
			return
		}
	}
}

func (f *fakeDC) find(base string, attributes []string) ([]*ldap.Entry, string) {
	if f.answer != nil {
		if e, r := f.answer(base, attributes); e != nil || r != "" {
			return e, r
		}
	}
	const settings = "CN=NTDS Settings,CN=FAKE"
	switch base {
	case "":
		return []*ldap.Entry{ldap.NewEntry("", map[string][]string{"dnsHostName": {f.host}, "configurationNamingContext": {fakeConfig},
			"rootDomainNamingContext": {"DC=fake,DC=test"}, "defaultNamingContext": {"DC=fake,DC=test"}, "dsServiceName": {settings},
			"highestCommittedUSN": {fmt.Sprint(f.usn)}})}, ""
	case settings:
		return []*ldap.Entry{ldap.NewEntry(settings, map[string][]string{"invocationId": {f.invocation}})}, ""
	case "CN=Partitions," + fakeConfig:
		return []*ldap.Entry{ldap.NewEntry("CN=FAKE,"+base, map[string][]string{"nCName": {"DC=fake,DC=test"}, "dnsRoot": {"fake.test"}, "nETBIOSName": {"FAKE"}})}, ""
	case pkiBase(fakeConfig):
		return slices.Clone(f.objects), ""
	}
	return nil, ""
}

func text(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

func fakeReply(id int64, op *ber.Packet) []byte {
	p := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	p.AppendChild(op)
	return p.Bytes()
}

func entryPacket(e *ldap.Entry) *ber.Packet {
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	p.AppendChild(text(e.DN))
	list := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
	for _, a := range e.Attributes {
		values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range a.ByteValues {
			values.AppendChild(text(string(v)))
		}
		one := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSequence, nil, "")
		one.AppendChild(text(a.Name))
		one.AppendChild(values)
		list.AppendChild(one)
	}
	p.AppendChild(list)
	return p
}

// fakeForest is a directory with scripted controllers.
func fakeForest(t *testing.T, c Config, log *captured, dcs ...*fakeDC) *Directory {
	t.Helper()
	c.Auth = Auth{Method: GSSAPI, Principal: "svc", Keytab: "none"}
	if c.Domain == "" {
		for _, f := range dcs {
			c.Servers = append(c.Servers, f.url())
		}
	}
	d, err := New(c, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	d.connectTo = func(ctx context.Context, target target) (*session, error) {
		i := slices.IndexFunc(dcs, func(f *fakeDC) bool { return f.host == target.host })
		if i < 0 {
			return nil, fmt.Errorf("no route to %s", target.host)
		}
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", dcs[i].listener.Addr().String())
		if err != nil {
			return nil, err
		}
		conn := ldap.NewConn(raw, false)
		conn.SetTimeout(d.config.Timeout)
		conn.Start()
		s := &session{ldap: conn, target: target, page: d.config.PageSize, patience: 300 * time.Millisecond}
		if err := s.begin(); err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	}
	return d
}

// run runs the directory until the test, or the returned function, ends it.
func run(t *testing.T, d *Directory) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(15 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// oids are the registered OIDs of the newest snapshot.
func oids(d *Directory) string {
	var out []string
	if s := d.Snapshot(); s != nil {
		for oid := range s.OIDs {
			out = append(out, oid)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
