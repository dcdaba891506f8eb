package ldapsync

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	retryConnect = time.Second      // a failure to connect is the answer to everybody who asks within this time
	avoid        = 30 * time.Second // a server that failed comes after the others for this long
)

// candidate is a server that may be asked, and how much others are preferred to it: 0 is the best.
type candidate struct {
	url  string
	rank int
}

// candidates lists the servers, the preferred ones first: as configured, else as DNS has them.
func (d *Directory) candidates(ctx context.Context) ([]candidate, error) {
	if len(d.config.Servers) == 0 {
		return d.discover(ctx)
	}
	out := make([]candidate, len(d.config.Servers))
	for i, s := range d.config.Servers {
		out[i] = candidate{s, i}
	}
	return out, nil
}

// connected returns the session, making one if there is none. Callers at the same time share one attempt.
func (d *Directory) connected(ctx context.Context) (*session, error) {
	d.mu.Lock()
	s, failed, failure, closed := d.session, d.failed, d.failure, d.isClosed
	d.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
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

var errClosed = errors.New("directory: closed")

// connect tries the servers in turn. It has a life of its own: who waits for it may go away, others may not.
func (d *Directory) connect() (*session, error) {
	d.mu.Lock()
	s := d.session
	d.mu.Unlock()
	if s != nil && !s.ldap.IsClosing() { // somebody else was faster
		return s, nil
	}
	if s != nil { // its end was noticed by nobody who asked
		d.drop(s, errConnection)
	}
	ctx := context.Background()
	list, err := d.candidates(ctx)
	if err == nil {
		s, err = d.first(ctx, d.inOrder(list))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.isClosed {
		go s.close()
		err = errClosed
	}
	if err != nil {
		d.failed, d.failure = time.Now(), err
		return nil, err
	}
	d.session, d.failure, d.probed = s, nil, time.Now()
	d.log.WithFields(logrus.Fields{"server": s.target.url, "controller": s.root.host, "preferred": s.rank == 0}).Info("connected to the directory")
	return s, nil
}

// inOrder puts servers that failed a moment ago last.
func (d *Directory) inOrder(list []candidate) []candidate {
	d.mu.Lock()
	defer d.mu.Unlock()
	failed := func(c candidate) int {
		if at, ok := d.failures[c.url]; ok && time.Since(at) < avoid {
			return 1
		}
		return 0
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b candidate) int { return failed(a) - failed(b) })
	return list
}

// first connects to the first server that works. The error has every server's reason.
func (d *Directory) first(ctx context.Context, list []candidate) (*session, error) {
	var failures []error
	for _, c := range list {
		s, err := d.open(ctx, c)
		if err == nil {
			return s, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// open connects to one server, and remembers if that fails.
func (d *Directory) open(ctx context.Context, c candidate) (*session, error) {
	t, err := d.config.target(c.url)
	if err != nil {
		return nil, err
	}
	s, err := d.connectTo(ctx, t)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failures[c.url] = time.Now()
		return nil, err
	}
	delete(d.failures, c.url)
	s.rank = c.rank
	return s, nil
}

// drop gives a session up if err says that the connection is of no more use. The next one prefers another server.
func (d *Directory) drop(s *session, err error) {
	if err == nil || !errors.Is(err, errConnection) && !s.ldap.IsClosing() {
		return
	}
	d.mu.Lock()
	if d.session == s {
		d.session = nil
		d.failures[s.target.url] = time.Now()
	}
	d.mu.Unlock()
	go s.close() // a dead peer may hold it up
}

// failBack goes back to a better server than the present one as soon as one works, at most once in Config.FailBack, so
// that a server that comes and goes does no harm. The present session stays in use until then, and until its requests
// have ended.
func (d *Directory) failBack(ctx context.Context) {
	d.mu.Lock()
	s := d.session
	due := s != nil && s.rank > 0 && time.Since(d.probed) >= d.config.FailBack
	if due {
		d.probed = time.Now()
	}
	d.mu.Unlock()
	if due {
		go func() { _, _, _ = d.flights.Do("fail back", func() (any, error) { d.probe(ctx, s); return nil, nil }) }()
	}
}

// probe replaces the session by one with a better server, if one answers what the gateway needs.
func (d *Directory) probe(ctx context.Context, s *session) {
	list, err := d.candidates(ctx)
	if err != nil {
		return
	}
	list = slices.DeleteFunc(list, func(c candidate) bool { return c.rank >= s.rank })
	better, err := d.first(ctx, list)
	if err == nil && !d.accountsOnly {
		if _, err = better.readVersions(); err != nil {
			go better.close()
		}
	}
	if err != nil {
		d.log.WithError(err).Debug("no better domain controller works yet")
		return
	}
	d.mu.Lock()
	replaced := d.session == s && !d.isClosed
	if replaced {
		d.session, d.probed = better, time.Now()
	}
	d.mu.Unlock()
	if !replaced {
		better.close()
		return
	}
	d.log.WithFields(logrus.Fields{"server": better.target.url, "controller": better.root.host, "left": s.target.url}).Info("back on a better domain controller")
	time.AfterFunc(d.config.Timeout, s.close)
	d.hint()
}
