package ldapsync

import (
	"context"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

const (
	followAgain = time.Minute           // after notifications ended by themselves
	gather      = 50 * time.Millisecond // changes rarely come alone
)

// followed are the containers that a controller is asked to watch. It watches a whole subtree only at the top of a
// partition, and at most five searches on one connection ([MS-ADTS] 3.1.1.3.4.1.9).
func followed(configDN string) []string {
	base := pkiBase(configDN)
	return []string{base, "CN=Certificate Templates," + base, "CN=Enrollment Services," + base, "CN=OID," + base}
}

// follower has the controller say when something changes, on a connection of its own: a search that never ends must not
// share the time limits, nor the fate, of the others. It is a hint to look now and no more: a notification that does
// not come costs one Poll. Its fields belong to Run.
type follower struct {
	directory *Directory
	session   *session // whose controller is asked
	cancel    context.CancelFunc
	done      chan struct{} // closed when notifications have ended
	begun     time.Time
}

// follow makes sure that the controller of the present session is the one that notifies.
func (f *follower) follow(ctx context.Context) {
	f.directory.mu.Lock()
	s := f.directory.session
	f.directory.mu.Unlock()
	if s == f.session && f.cancel != nil {
		select {
		case <-f.done:
			if time.Since(f.begun) < followAgain {
				return
			}
		default:
			return
		}
	}
	f.stop()
	if s == nil || !s.root.notifies {
		return
	}
	ctx, f.cancel = context.WithCancel(ctx)
	f.session, f.done, f.begun = s, make(chan struct{}), time.Now()
	go func(done chan struct{}) {
		defer close(done)
		if err := f.directory.notifications(ctx, s); err != nil && ctx.Err() == nil {
			f.directory.log.WithError(err).Debug("the controller does not tell about changes; they are found by polling")
		}
	}(f.done)
}

func (f *follower) stop() {
	if f.cancel != nil {
		f.cancel()
	}
	f.session, f.cancel = nil, nil
}

// notifications hints at each change until ctx ends or the controller has no more to say.
func (d *Directory) notifications(ctx context.Context, s *session) error {
	conn, err := d.config.bind(ctx, d.dial, s.target)
	if err != nil {
		return err
	}
	conn.SetTimeout(0) // the searches never end; a dead peer shows by TCP keep-alive
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	var searches sync.WaitGroup
	failures := make(chan error, len(followed("")))
	for _, base := range followed(s.root.configDN) {
		request := ldap.NewSearchRequest(base, ldap.ScopeSingleLevel, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
			[]string{"uSNChanged"}, []ldap.Control{ldap.NewControlMicrosoftNotification()})
		answer := conn.SearchAsync(ctx, request, 16)
		searches.Go(func() {
			for answer.Next() {
				d.hint()
			}
			failures <- answer.Err()
		})
	}
	searches.Wait()
	return <-failures
}

// hint makes Run look for changes now.
func (d *Directory) hint() {
	select {
	case d.hints <- struct{}{}:
	default: // there is one already
	}
}
