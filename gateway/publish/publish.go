// Package publish brings issued certificates into Active Directory, where their templates ask for it, and takes them out
// again when they have expired, were revoked or were replaced ([MS-WCCE] 3.2.2.1.4, 3.2.2.1.5).
//
// The ledger says what is wanted, in rows that come with the certificates; Run works them off, one object of the directory
// after the other, and records how it went. Nobody waits for it: enrolment ends before. What failed is tried again, less
// and less often, also by another process after a crash: every step may be repeated.
package publish

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Directory is where certificates are written to. ldapsync.Directory is the real one, with a connection that nobody else
// uses. Its contracts are there.
type Directory interface {
	AccountsWithCertificates(ctx context.Context, sids []security.SID) (map[security.SID]ldapsync.Account, error)
	ChangeCertificates(ctx context.Context, sid security.SID, add, remove [][]byte) error
	KRACertificates(ctx context.Context, name string) ([][]byte, error)
	ChangeKRACertificates(ctx context.Context, name string, add, remove [][]byte) error
	// Reconnect makes rights that were granted to a group count.
	Reconnect()
}

// Options are what a Publisher works with.
type Options struct {
	Ledger       *ledger.Ledger
	Directory    Directory
	Snapshot     func() *templates.Snapshot // which templates supersede which; nil results mean that it is not known yet
	CleanForeign bool                       // remove expired certificates of other CAs too
	Retry        time.Duration              // after the first failure; doubled after each further one
	MaxRetry     time.Duration
	Sweep        time.Duration // how often to look at everything, due or not; 0: never
	Account      string        // who writes, for messages
	Log          logrus.FieldLogger
	Now          func() time.Time
	Count        func(outcome string, n int) // added, removed, failed
}

// Publisher does it. It is safe for concurrent use, and several processes may have one each.
type Publisher struct {
	o       Options
	working sync.Mutex            // held while objects are worked on; guards denied
	denied  map[ledger.Place]bool // a missing right was reported
}

// New makes a Publisher.
func New(o Options) *Publisher {
	return &Publisher{o: o, denied: map[ledger.Place]bool{}}
}

// Report is what was done to an object of the directory, or would be done.
type Report struct {
	ledger.Target
	DN        string     `json:"dn,omitempty"`
	Add       []Item     `json:"add,omitempty"`
	Remove    []Item     `json:"remove,omitempty"`
	Attempts  int        `json:"attempts"` // that failed one after the other
	LastError string     `json:"last_error,omitempty"`
	Next      *time.Time `json:"next,omitempty"`  // when the service tries again
	Error     string     `json:"error,omitempty"` // of this look
	Fix       string     `json:"fix,omitempty"`
}

const (
	batch    = 50              // objects, for which one search suffices
	look     = time.Second     // between looks into the ledger
	maxPause = time.Minute     // while the directory gives no answer
	settle   = 2 * time.Second // after the start, when requests wait for a domain controller to be found

	firstSweep = time.Hour // after the start: also of a process that is restarted every day
)

// Run publishes what is due until ctx ends, and now and then looks at everything.
func (p *Publisher) Run(ctx context.Context) {
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	sweeping.Go(func() { p.sweep(ctx) })
	if !sleep(ctx, settle) {
		return
	}
	pause := look
	for {
		n, err := p.due(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = min(2*pause, maxPause)
		case n == batch:
			pause = 0
		default:
			pause = look
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = max(pause, look)
	}
}

// sweep finds what nothing announces: a value that replication brought back from another controller, an expired certificate
// of others. It goes on beside what is due, object by object.
func (p *Publisher) sweep(ctx context.Context) {
	for wait := min(p.o.Sweep, firstSweep); p.o.Sweep > 0 && sleep(ctx, wait); wait = p.o.Sweep {
		if _, err := p.Pass(ctx, false); err != nil && ctx.Err() == nil {
			p.o.Log.WithError(err).Warn("not every account could be looked at for certificates that are over")
		}
	}
}

// sleep tells whether the time has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// due looks at the objects that have waited longest. The error is about the ledger or the directory as a whole.
func (p *Publisher) due(ctx context.Context) (n int, err error) {
	if p.o.Snapshot() == nil {
		return 0, nil // the directory has not been read yet
	}
	targets, err := p.o.Ledger.DueTargets(ctx, p.o.Now(), batch)
	if err != nil {
		p.o.Log.WithError(err).Error("it cannot be read which certificates are to be published")
		return 0, err
	}
	_, err = p.work(ctx, targets, false)
	return len(targets), err
}

// Pass looks at every object that has certificates of the gateway, or should have, whether something is due or not. With dry
// it changes nothing, in the directory or in the ledger.
func (p *Publisher) Pass(ctx context.Context, dry bool) ([]Report, error) {
	out := []Report{}
	var last ledger.Target
	for {
		targets, err := p.o.Ledger.LiveTargets(ctx, last, batch)
		if err != nil || len(targets) == 0 {
			return out, err
		}
		reports, err := p.work(ctx, targets, dry)
		out = append(out, reports...)
		if err != nil {
			return out, err
		}
		last = targets[len(targets)-1]
	}
}

// work does what has to be done to some objects. Where the directory cannot be asked at all, that is the error, and each of
// them has failed.
func (p *Publisher) work(ctx context.Context, targets []ledger.Target, dry bool) ([]Report, error) {
	p.working.Lock()
	defer p.working.Unlock()
	var sids []security.SID
	for _, t := range targets {
		if t.Place == ledger.PlaceAccount {
			sids = append(sids, security.SID(t.Name))
		}
	}
	var accounts map[security.SID]ldapsync.Account
	var silent error
	if len(sids) > 0 {
		accounts, silent = p.o.Directory.AccountsWithCertificates(ctx, sids)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var out []Report
	reconnect := false
	for _, t := range targets {
		r := Report{Target: t}
		err := p.one(ctx, &r, accounts, silent, dry)
		if ctx.Err() != nil {
			return out, ctx.Err() // what was under way is tried again: nothing is known against it
		}
		if err != nil {
			_, refused := errors.AsType[*ldapsync.RightError](err)
			reconnect = reconnect || refused
			p.failed(ctx, &r, err, silent != nil, dry)
		}
		out = append(out, r)
	}
	if reconnect {
		p.o.Directory.Reconnect()
	}
	return out, silent
}

// one looks at one object and, unless dry, makes it what it should be.
func (p *Publisher) one(ctx context.Context, r *Report, accounts map[security.SID]ldapsync.Account, silent error, dry bool) error {
	issued, err := p.o.Ledger.Publications(ctx, r.Target)
	if err != nil {
		return err
	}
	for _, i := range issued {
		if i.State == ledger.Wanted || i.State == ledger.Published {
			r.failedBefore(i)
		}
	}
	values, err := p.values(ctx, r, accounts, silent)
	if err != nil {
		return err
	}
	plan := newPlan(issued, values, p.rules(r.Place))
	r.Add, r.Remove = plan.add, plan.remove
	if gone := r.Place == ledger.PlaceAccount && accounts[security.SID(r.Name)].State == ldapsync.AccountDeleted; gone && len(plan.add) > 0 {
		return ldapsync.ErrNoAccount
	}
	if dry {
		return nil
	}
	if len(plan.add)+len(plan.remove) > 0 {
		began := time.Now()
		if err := p.write(ctx, r.Target, valuesOf(plan.add), valuesOf(plan.remove)); err != nil {
			return err
		}
		// A controller that does one thing at a time has to read accounts for requests, too: half of it is theirs.
		defer func() { sleep(ctx, time.Since(began)) }()
	}
	if !plan.settled(issued, p.o.Now()) {
		if err := p.o.Ledger.PublicationsDone(ctx, r.Target, plan.published, plan.withdrawn); err != nil {
			return err
		}
	}
	p.succeeded(r)
	return nil
}

// failedBefore takes over what the ledger has of earlier attempts.
func (r *Report) failedBefore(p ledger.Publication) {
	if p.Attempts > r.Attempts {
		r.Attempts, r.LastError, r.Next = p.Attempts, p.Error, &p.Due
	}
}

// rules for a place: in the KRA container certificates do not supersede each other, because a CA may have been told to seal
// to an older one.
func (p *Publisher) rules(place ledger.Place) rules {
	r := rules{now: p.o.Now(), cleanForeign: p.o.CleanForeign && place == ledger.PlaceAccount}
	if s := p.o.Snapshot(); s != nil && place == ledger.PlaceAccount {
		r.supersedes = func(newer, older string) bool {
			t := s.TemplateByName(newer)
			return t != nil && slices.ContainsFunc(t.Supersedes, func(name string) bool { return strings.EqualFold(name, older) })
		}
	}
	return r
}

// values are what the object has.
func (p *Publisher) values(ctx context.Context, r *Report, accounts map[security.SID]ldapsync.Account, silent error) ([][]byte, error) {
	if r.Place == ledger.PlaceKRA {
		return p.o.Directory.KRACertificates(ctx, wcce.SanitizedShortName(r.Name))
	}
	account := accounts[security.SID(r.Name)]
	r.DN = account.DN
	switch {
	case silent != nil:
		return nil, silent
	case account.State == ldapsync.AccountUnknown:
		return nil, errors.New("the account cannot be found: " + account.Why)
	case account.State == ldapsync.AccountDeleted:
		return nil, nil // a tombstone has no certificates
	}
	return account.Certificates, nil
}

func (p *Publisher) write(ctx context.Context, t ledger.Target, add, remove [][]byte) error {
	if t.Place == ledger.PlaceKRA {
		return p.o.Directory.ChangeKRACertificates(ctx, wcce.SanitizedShortName(t.Name), add, remove)
	}
	return p.o.Directory.ChangeCertificates(ctx, security.SID(t.Name), add, remove)
}
