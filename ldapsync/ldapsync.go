// Package ldapsync reads Active Directory: certificate templates, enrollment services and OIDs as immutable snapshots,
// and accounts one at a time.
//
// Make a Directory with New, run its Run in a goroutine, and call Snapshot for the newest state, which never waits for
// the network. Subject and SubjectByName look accounts up, Accounts many of them. Two files write: write.go certificate
// templates, for an administrator who brings credentials of his own, and publish.go certificates.
//
// Connections are authenticated and encrypted, always: by TLS, or by Kerberos on plain ldap:// with the SASL GSSAPI
// security layer of RFC 4752, which Active Directory and Samba demand and the LDAP library does not have (sasl.go,
// wrap.go, gssapi.go).
package ldapsync

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/enrollgate/enrollgate/templates"
)

// Directory is a forest, seen through one of its domain controllers at a time. It is safe for concurrent use.
type Directory struct {
	config    Config
	log       logrus.FieldLogger
	dial      dialFunc
	resolver  resolver
	connectTo func(context.Context, target) (*session, error)
	snapshot  atomic.Pointer[templates.Snapshot]
	flights   singleflight.Group // connecting, and reading an account
	subjects  *subjectCache
	identity  atomic.Pointer[identity]
	// accountsOnly: nothing but accounts is read, of a domain whose configuration does not matter.
	accountsOnly bool
	hints        chan struct{} // something may have changed

	// Owned by Run.
	saved   time.Time // confirmation that the saved file has
	saveErr error     // why it could not be written last

	reading     sync.Mutex // held while a snapshot is read; guards seen and controllers
	seen        seen
	controllers controllers

	mu       sync.Mutex           // guards what follows; never held across the network
	session  *session             // nil while not connected
	found    []candidate          // in DNS
	ownSite  string               // what controllers say; empty while unknown
	pinged   time.Time            // when they were asked last
	failures map[string]time.Time // when servers failed last, by URL
	probed   time.Time            // when better servers than the session's were tried last
	failed   time.Time            // when connecting failed last
	failure  error                // why
	checked  time.Time            // when the controller last said that the snapshot is up to date
	lastErr  error                // of the last attempt to read; nil after a success
	rollback string               // controller whose database went back in time
	isClosed bool
}

// seen is what the newest snapshot was made from.
type seen struct {
	session  *session
	usn      int64
	versions versions
	full     time.Time // when everything was read last
	reading  *reading
	unsaved  bool // the saved file has another one
}

// Status is what to show about the connection.
type Status struct {
	Server     string        // URL of the connected server; empty while there is none
	Controller string        // DNS host name of the controller that the snapshot is from
	Taken      time.Time     // the snapshot's Taken: at most half a minute before Checked; zero before the first
	Checked    time.Time     // when a controller last confirmed that nothing has changed since
	Age        time.Duration // since Checked; 0 before the first snapshot
	Preferred  bool          // whether the connected server is one of the most preferred
	Rollback   string        // controller of the snapshot, if its USN went back: it does not replicate; else empty
	Err        error         // why the last attempt failed; nil if it did not
}

const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second

	// confirmEvery is how old Taken of an unchanged snapshot gets before it is replaced by a copy with a newer one. Readers
	// compare Taken with limits of minutes to days, and keep things for as long as the pointer is the same.
	confirmEvery = 30 * time.Second
)

// New checks the configuration and loads the saved file, if there is one: then Snapshot has something at once. Nothing
// is asked of a controller before Run or Refresh.
func New(config Config, log logrus.FieldLogger) (*Directory, error) {
	complete, err := config.complete()
	if err != nil {
		return nil, err
	}
	d := &Directory{config: complete, log: log, resolver: net.DefaultResolver, hints: make(chan struct{}, 1),
		dial:        (&net.Dialer{Timeout: min(complete.Timeout, maxPatience)}).DialContext,
		controllers: controllers{}, failures: map[string]time.Time{}}
	d.connectTo = func(ctx context.Context, t target) (*session, error) { return d.config.connect(ctx, d.dial, t) }
	d.subjects = newSubjectCache(complete.SubjectTTL, complete.SubjectCache)
	d.load()
	return d, nil
}

// Snapshot is the newest state of the directory; nil until the first was read or loaded. It never waits. Its Taken is when
// a controller last confirmed it, up to half a minute earlier than Status().Checked; a new pointer is not always a new
// state, but one that shares Templates and Services with another says the same.
func (d *Directory) Snapshot() *templates.Snapshot { return d.snapshot.Load() }

// Status tells how current the snapshot is.
func (d *Directory) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{Checked: d.checked, Err: d.lastErr, Rollback: d.rollback}
	if d.session != nil && !d.session.ldap.IsClosing() {
		s.Server, s.Preferred = d.session.target.url, d.session.rank == 0
	}
	if snapshot := d.snapshot.Load(); snapshot != nil {
		s.Controller, s.Taken, s.Age = snapshot.Controller, snapshot.Taken, time.Since(d.checked)
	}
	return s
}

// Run keeps the snapshot current, and saved, until ctx ends, then closes the connection. A change is seen when the
// controller tells about it, or else within Poll.
func (d *Directory) Run(ctx context.Context) {
	// Requests in flight end when their connection does.
	stop := context.AfterFunc(ctx, d.Close)
	defer stop()
	defer d.save(true)
	f := &follower{directory: d}
	defer f.stop()
	wait := firstBackoff
	for {
		err := d.update(ctx, false)
		if ctx.Err() != nil {
			return
		}
		d.save(false)
		f.follow(ctx)
		d.failBack(ctx)
		pause := d.config.Poll
		if err != nil {
			// Spread: many gateways see the same controller come back.
			pause = wait/2 + rand.N(wait/2)
			wait = min(2*wait, maxBackoff)
		} else {
			wait = firstBackoff
		}
		select {
		case <-ctx.Done():
			return
		case <-d.hints:
			time.Sleep(gather)
		case <-time.After(pause):
		}
	}
}

// Refresh reads everything now. It returns when the new snapshot is in place.
func (d *Directory) Refresh(ctx context.Context) error { return d.update(ctx, true) }

// Close ends the connection. The last snapshot stays.
func (d *Directory) Close() {
	d.mu.Lock()
	s := d.session
	d.session, d.isClosed = nil, true
	d.mu.Unlock()
	if s != nil {
		s.close()
	}
}

// update brings the snapshot up to date: with full by reading everything, else only if something has changed.
func (d *Directory) update(ctx context.Context, full bool) error {
	d.reading.Lock()
	defer d.reading.Unlock()
	began := time.Now() // what a controller says from now on holds from now on
	changed, err := d.updateLocked(ctx, full)
	if err == nil {
		d.confirm(began)
	}
	d.mu.Lock()
	previous := d.lastErr
	d.lastErr = err
	d.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil && (previous == nil || previous.Error() != err.Error()): // say it once, not every few seconds
		d.log.WithError(err).Warn("cannot read the directory; the last snapshot stays in use")
	case err == nil && (changed || previous != nil):
		s := d.snapshot.Load()
		d.log.WithFields(logrus.Fields{"controller": s.Controller, "usn": s.USN, "templates": len(s.Templates),
			"unusable": len(s.Unusable)}).Info("directory read")
	}
	return err
}

// confirm records that the snapshot was up to date at a time.
func (d *Directory) confirm(at time.Time) {
	s := d.snapshot.Load()
	if at.Sub(s.Taken) >= confirmEvery {
		c := *s
		c.Taken = at
		d.snapshot.Store(&c)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checked = later(at, s.Taken)
}

func (d *Directory) updateLocked(ctx context.Context, full bool) (changed bool, err error) {
	s, err := d.connected(ctx)
	if err != nil {
		return false, err
	}
	defer func() { d.drop(s, err) }()
	// USNs of different controllers cannot be compared ([MS-ADTS] 3.1.1.1.9): a new session starts anew.
	if full || d.seen.session != s || time.Since(d.seen.full) >= d.config.FullRead {
		return d.read(ctx, s)
	}
	root, err := s.readRoot()
	if err != nil || root.usn == d.seen.usn {
		return false, err
	}
	if root.usn < d.seen.usn { // the database went back: nothing that is known of it counts
		return d.read(ctx, s)
	}
	// Something was written somewhere in the controller's databases; mostly not here.
	v, err := s.readVersions()
	if err != nil {
		return false, err
	}
	if !v.equal(d.seen.versions) {
		return d.read(ctx, s)
	}
	d.seen.usn = root.usn
	d.controllers.observe(root.host, d.seen.reading.invocation, root.usn, time.Now())
	return false, nil
}

// read reads everything and swaps the snapshot. It tells whether anything is different.
func (d *Directory) read(ctx context.Context, s *session) (changed bool, err error) {
	r, err := s.readAll(ctx)
	if err != nil {
		return false, err
	}
	d.observe(r)
	old := d.snapshot.Load()
	changed = old == nil || d.seen.reading == nil || !r.same(d.seen.reading)
	snapshot := r.build
	if !changed {
		snapshot = func() *templates.Snapshot { return r.refreshed(old) }
	}
	d.seen = seen{session: s, usn: r.usn, versions: r.versions(), full: r.taken, reading: r, unsaved: changed || d.seen.unsaved}
	d.snapshot.Store(snapshot())
	return changed, nil
}
