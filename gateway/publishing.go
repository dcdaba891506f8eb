package gateway

import (
	"cmp"
	"fmt"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/leavers"
	"github.com/enrollgate/enrollgate/gateway/publish"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/sirupsen/logrus"
)

// bindAuth is how to log on to the directory; name is where the configuration says so.
func bindAuth(name string, b config.Bind, krb5Conf string) (ldapsync.Auth, error) {
	auth := ldapsync.Auth{Method: ldapsync.GSSAPI, Principal: b.Principal, Keytab: b.Keytab, Krb5Conf: krb5Conf}
	if b.Method == "simple" {
		auth = ldapsync.Auth{Method: ldapsync.Simple, User: b.User}
	}
	if b.Method == "simple" || b.Keytab == "" {
		password, err := b.Password.Read()
		if err != nil {
			return auth, fmt.Errorf("%s.password: %w", name, err)
		}
		auth.Password = string(password)
	}
	return auth, nil
}

// newPublisher prepares publishing, with a connection of its own: reading, for which requests wait, does not share it.
func newPublisher(g *Gateway) (*publish.Publisher, *ldapsync.Forest, error) {
	c, err := DirectoryConfig(g.Config)
	if err != nil {
		return nil, nil, err
	}
	p := g.Config.Publish
	if c.Auth, err = bindAuth("publish.bind", p.Bind, g.Config.Directory.Krb5Conf); err != nil {
		return nil, nil, err
	}
	c.StateFile = ""
	log := g.Log.WithField("part", "publishing")
	d, err := newForest(g.Config, c, log)
	if err != nil {
		return nil, nil, err
	}
	d.Follow(g.Forest)
	return publish.New(publish.Options{
		Ledger: g.Ledger, Directory: d, Snapshot: g.Directory.Snapshot, CleanForeign: p.CleanForeign, Retry: p.Retry, MaxRetry: p.MaxRetry, Sweep: p.Sweep,
		Account: cmp.Or(p.Bind.Principal, p.Bind.User), Log: log, Now: g.now, Count: g.metrics.published,
	}), d, nil
}

// LeaverOptions are what the search for leavers works with.
func (g *Gateway) LeaverOptions() leavers.Options {
	l := g.Config.Leavers
	return leavers.Options{
		Ledger: g.Ledger, Directory: g.Forest, Revoke: g.revoke, Every: l.Every, Grace: l.Grace, MaxPerRun: l.MaxPerRun, MaxPercent: l.MaxPercent,
		Expired: l.Expired, Reason: l.CRLReason(), Log: g.Log.WithFields(logrus.Fields{"part": "leavers"}), Now: g.now, Count: g.metrics.left,
	}
}
