// Package ldapsync reads Active Directory: certificate templates, enrollment services and OIDs as immutable snapshots,
// and accounts one at a time.
//
// Make a Directory with New, run its Run in a goroutine, and call Snapshot for the newest state, which never waits for
// the network. Subject and SubjectByName look accounts up.
//
// Connections are authenticated and encrypted, always: by TLS, or by Kerberos on plain ldap:// with the SASL GSSAPI
// security layer of RFC 4752, which Active Directory and Samba demand and the LDAP library does not have (sasl.go,
// wrap.go, gssapi.go).
package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/enrollgate/enrollgate/templates"
)

// Directory is a forest, seen through one of its domain controllers at a time. It is safe for concurrent use.
type Directory struct {
	config   Config
	log      logrus.FieldLogger
	dial     dialFunc
	snapshot atomic.Pointer[templates.Snapshot]
	flights  singleflight.Group // connecting, and reading an account
	subjects *subjectCache

	reading sync.Mutex // held while a snapshot is read; guards seen
	seen    seen

	mu       sync.Mutex // guards what follows; never held across the network
	session  *session   // nil while not connected
	next     int        // index of the server to try first
	failed   time.Time  // when connecting failed last
	failure  error      // why
	checked  time.Time  // when the controller last said that the snapshot is up to date
	lastErr  error      // of the last attempt to read; nil after a success
	isClosed bool
}

// seen is what the newest snapshot was made from.
type seen struct {
	session  *session
	usn      int64
	versions versions
	full     time.Time // when everything was read last
}

// Status is what to show about the connection.
type Status struct {
	Server     string        // URL of the connected server; empty while there is none
	Controller string        // DNS host name of the controller that the snapshot is from
	Taken      time.Time     // when the snapshot was read; zero before the first
	Checked    time.Time     // when a controller last confirmed that nothing has changed since
	Age        time.Duration // since Checked; 0 before the first snapshot
	Err        error         // why the last attempt failed; nil if it did not
}

const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second
	retryConnect = time.Second // a failure to connect is the answer to everybody who asks within this time
)

// New checks the configuration. Nothing is read before Run or Refresh.
func New(config Config, log logrus.FieldLogger) (*Directory, error) {
	complete, err := config.complete()
	if err != nil {
		return nil, err
	}
	d := &Directory{config: complete, log: log, dial: (&net.Dialer{Timeout: complete.Timeout}).DialContext}
	d.subjects = newSubjectCache(complete.SubjectTTL, complete.SubjectCache)
	return d, nil
}

// Snapshot is the newest state of the directory; nil until the first was read. It never waits.
func (d *Directory) Snapshot() *templates.Snapshot { return d.snapshot.Load() }

// Status tells how current the snapshot is.
func (d *Directory) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{Checked: d.checked, Err: d.lastErr}
	if d.session != nil && !d.session.ldap.IsClosing() {
		s.Server = d.session.target.url
	}
	if snapshot := d.snapshot.Load(); snapshot != nil {
		s.Controller, s.Taken, s.Age = snapshot.Controller, snapshot.Taken, time.Since(d.checked)
	}
	return s
}

// Run keeps the snapshot current until ctx ends, then closes the connection.
func (d *Directory) Run(ctx context.Context) {
	// Requests in flight end when their connection does.
	stop := context.AfterFunc(ctx, d.Close)
	defer stop()
	wait := firstBackoff
	for {
		err := d.update(ctx, false)
		if ctx.Err() != nil {
			return
		}
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
	changed, err := d.updateLocked(ctx, full)
	d.mu.Lock()
	previous := d.lastErr
	d.lastErr = err
	if err == nil {
		d.checked = time.Now()
	}
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
	// Something was written somewhere in the controller's databases; mostly not here.
	v, err := s.readVersions()
	if err != nil {
		return false, err
	}
	if !v.equal(d.seen.versions) {
		return d.read(ctx, s)
	}
	d.seen.usn = root.usn
	return false, nil
}

// read reads everything and swaps the snapshot. It tells whether anything is different.
func (d *Directory) read(ctx context.Context, s *session) (changed bool, err error) {
	snapshot, v, err := s.readSnapshot(ctx)
	if err != nil {
		return false, err
	}
	changed = d.snapshot.Load() == nil || !v.equal(d.seen.versions)
	d.seen = seen{session: s, usn: snapshot.USN, versions: v, full: snapshot.Taken}
	d.snapshot.Store(snapshot)
	return changed, nil
}

// connected returns the session, making one if there is none. Callers at the same time share one attempt.
func (d *Directory) connected(ctx context.Context) (*session, error) {
	d.mu.Lock()
	s, failed, failure, closed := d.session, d.failed, d.failure, d.isClosed
	d.mu.Unlock()
	switch {
	case closed:
		return nil, errors.New("directory: closed")
	case s != nil && !s.ldap.IsClosing():
		return s, nil
	case failure != nil && time.Since(failed) < retryConnect:
		return nil, failure
	}
	result := d.flights.DoChan("connect", func() (any, error) { return d.connect() })
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*session), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect tries the servers in turn. It has a life of its own: who waits for it may go away, others may not.
func (d *Directory) connect() (*session, error) {
	d.mu.Lock()
	if s := d.session; s != nil && !s.ldap.IsClosing() { // somebody else was faster
		d.mu.Unlock()
		return s, nil
	}
	first := d.next
	d.mu.Unlock()
	s, index, err := d.tryServers(context.Background(), first)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.isClosed {
		s.close()
		err = errors.New("directory: closed")
	}
	if err != nil {
		d.failed, d.failure = time.Now(), err
		return nil, err
	}
	d.session, d.next, d.failure = s, index, nil
	return s, nil
}

// tryServers connects to the first server that works. The error has every server's reason.
func (d *Directory) tryServers(ctx context.Context, first int) (*session, int, error) {
	servers := d.config.Servers
	if len(servers) == 0 {
		found, err := d.discover(ctx)
		if err != nil {
			return nil, 0, err
		}
		servers = found
	}
	var failures []error
	for i := range servers {
		index := (first + i) % len(servers)
		t, err := d.config.target(servers[index])
		if err != nil {
			failures = append(failures, err)
			continue
		}
		s, err := d.config.connect(ctx, d.dial, t)
		if err == nil {
			d.log.WithFields(logrus.Fields{"server": t.url, "controller": s.root.host}).Debug("connected to the directory")
			return s, index, nil
		}
		failures = append(failures, err)
	}
	return nil, 0, errors.Join(failures...)
}

// discover finds the domain's controllers in DNS ([MS-ADTS] 6.3.6).
func (d *Directory) discover(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	_, records, err := net.DefaultResolver.LookupSRV(ctx, "ldap", "tcp", "dc._msdcs."+d.config.Domain)
	if err != nil {
		return nil, fmt.Errorf("directory: looking for domain controllers of %s in DNS: %w", d.config.Domain, err)
	}
	var servers []string
	for _, r := range records { // already in the order of priority and weight
		host := strings.TrimSuffix(r.Target, ".")
		url := "ldap://" + net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
		if d.config.Auth.Method == Simple && !d.config.StartTLS {
			url = "ldaps://" + host
		}
		servers = append(servers, url)
	}
	return slices.Compact(servers), nil
}

// drop gives a session up, and turns to the next server, if err says that the connection is of no more use.
func (d *Directory) drop(s *session, err error) {
	if err == nil || !errors.Is(err, errConnection) && !s.ldap.IsClosing() {
		return
	}
	d.mu.Lock()
	if d.session == s {
		d.session = nil
		d.next++
	}
	d.mu.Unlock()
	s.close()
}
