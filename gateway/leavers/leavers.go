// Package leavers revokes the certificates of accounts that are gone: disabled or deleted in the directory for longer than a
// grace period. What an account is found to be is recorded when it is first seen; one that is back has a new clock.
//
// A mistake must not revoke everybody: an answer that is not certain counts for nothing, and where more accounts are due at
// once, or gone at a time, than the configuration allows, nothing at all is revoked until an operator confirms it. Archived
// keys are never touched.
package leavers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Directory tells what became of accounts: for every one, or an error. ldapsync.Directory is the real one.
type Directory interface {
	Accounts(ctx context.Context, sids []security.SID) (map[security.SID]ldapsync.Account, error)
}

// Options are what a Checker works with.
type Options struct {
	Ledger    *ledger.Ledger
	Directory Directory
	// Revoke revokes a certificate at its CA and records it, with a reason for people.
	Revoke func(ctx context.Context, row *ledger.Row, actor string, reason int, why string) error

	Every      time.Duration
	Grace      time.Duration
	MaxPerRun  int  // accounts due at once
	MaxPercent int  // accounts gone, of all that have certificates
	Expired    bool // accounts whose accountExpires has passed are gone, too
	Reason     int  // CRLReason (RFC 5280 5.3.1)

	Log   logrus.FieldLogger
	Now   func() time.Time
	Count func(revoked int, held bool) // after each check that may revoke
}

// fewGone is how many accounts may be gone whatever part of all they are: of three accounts, one is a third.
const fewGone = 5

// actorName is who revokes, for the audit log.
const actorName = "gateway"

// Certificate is one of an account's valid certificates.
type Certificate struct {
	Request  int64     `json:"request"`
	Template string    `json:"template"`
	CA       string    `json:"ca"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Archived bool      `json:"key_archived"`
	Keep     string    `json:"keep,omitempty"` // why it is not revoked
	Revoked  bool      `json:"revoked"`
	row      *ledger.Row
}

// Leaver is an account that is gone.
type Leaver struct {
	SID          security.SID  `json:"sid"`
	Account      string        `json:"account"`
	DN           string        `json:"dn,omitempty"`
	State        string        `json:"state"`
	Why          string        `json:"why,omitempty"`
	Since        time.Time     `json:"since"` // first seen gone
	Due          time.Time     `json:"due"`
	IsDue        bool          `json:"is_due"`
	Certificates []Certificate `json:"certificates"`
	Error        string        `json:"error,omitempty"`
}

// Report is the result of a check.
type Report struct {
	Known   int      `json:"known"`          // accounts with valid certificates
	Unknown int      `json:"unknown"`        // of which the directory says nothing certain
	Gone    int      `json:"gone"`           // disabled or deleted
	Due     int      `json:"due"`            // for longer than the grace period
	Held    string   `json:"held,omitempty"` // why nothing is revoked
	Revoked int      `json:"revoked"`        // certificates
	Leavers []Leaver `json:"leavers"`
}

// Checker looks for leavers.
type Checker struct{ o Options }

// New makes a Checker.
func New(o Options) *Checker { return &Checker{o} }

// Run checks again and again until ctx ends.
func (c *Checker) Run(ctx context.Context) {
	for {
		if _, err := c.Check(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.WithError(err).Warn("it is unknown which accounts are gone; nothing is revoked")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.o.Every):
		}
	}
}

// Look tells what Check would find and do. It changes and records nothing.
func (c *Checker) Look(ctx context.Context) (*Report, error) {
	r, _, err := c.find(ctx)
	return r, err
}

// Check records who is gone and who is back, and revokes the certificates of those who are due, unless there are too many.
func (c *Checker) Check(ctx context.Context) (*Report, error) { return c.act(ctx, "") }

// Confirm is Check without limits, by an operator who has looked.
func (c *Checker) Confirm(ctx context.Context, operator string) (*Report, error) {
	return c.act(ctx, operator)
}

func (c *Checker) act(ctx context.Context, operator string) (*Report, error) {
	r, back, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	var gone []ledger.Leaver
	var due []security.SID
	for _, v := range r.Leavers {
		gone = append(gone, ledger.Leaver{Holder: ledger.Holder{SID: v.SID, Account: v.Account}, State: v.State, Since: v.Since})
		if v.IsDue {
			due = append(due, v.SID)
		}
	}
	if err := c.o.Ledger.RecordLeavers(ctx, gone, back); err != nil {
		return nil, err
	}
	if r.Held != "" && operator != "" && len(due) > 0 {
		if err := c.o.Ledger.LeaversConfirmed(ctx, operator, due, r.Held); err != nil {
			return nil, err
		}
		r.Held = ""
	}
	if r.Held != "" {
		c.o.Log.WithFields(logrus.Fields{"known": r.Known, "gone": r.Gone, "due": r.Due}).
			Error("nothing is revoked: " + r.Held + "; look with enrollgate leavers --dry-run, then confirm with enrollgate leavers --confirm")
		c.o.Count(0, true)
		return r, nil
	}
	for i := range r.Leavers {
		if v := &r.Leavers[i]; v.IsDue {
			r.Revoked += c.revoke(ctx, v)
		}
	}
	c.o.Count(r.Revoked, false)
	return r, ctx.Err()
}

// find asks the directory about every account with valid certificates. back are the recorded ones that are there again, or
// have no certificates any more.
func (c *Checker) find(ctx context.Context) (r *Report, back []security.SID, err error) {
	now := c.o.Now()
	holders, err := c.o.Ledger.Holders(ctx, now)
	if err != nil {
		return nil, nil, err
	}
	recorded, err := c.o.Ledger.Leavers(ctx)
	if err != nil {
		return nil, nil, err
	}
	sids := make([]security.SID, len(holders))
	for i, h := range holders {
		sids[i] = h.SID
	}
	accounts, err := c.o.Directory.Accounts(ctx, sids)
	if err != nil {
		return nil, nil, err
	}
	r = &Report{Known: len(holders), Leavers: []Leaver{}}
	for _, h := range holders {
		before, known := recorded[h.SID]
		delete(recorded, h.SID)
		account := accounts[h.SID]
		switch {
		case account.State == ldapsync.AccountUnknown || account.State == "":
			r.Unknown++
			continue
		case !c.gone(account.State):
			if known {
				back = append(back, h.SID)
			}
			continue
		}
		since := now
		if known {
			since = before.Since
		}
		leaver, err := c.leaver(ctx, h, account, since, now)
		if err != nil {
			return nil, nil, err
		}
		if leaver != nil {
			r.Leavers = append(r.Leavers, *leaver)
		}
	}
	for sid := range recorded {
		back = append(back, sid)
	}
	c.judge(r)
	return r, back, nil
}

func (c *Checker) gone(s ldapsync.AccountState) bool {
	return s == ldapsync.AccountDisabled || s == ldapsync.AccountDeleted || c.o.Expired && s == ldapsync.AccountExpired
}

// leaver lists the certificates of an account that is gone; nil where none of them is to be revoked.
func (c *Checker) leaver(ctx context.Context, h ledger.Holder, account ldapsync.Account, since, now time.Time) (*Leaver, error) {
	rows, err := c.o.Ledger.ValidOf(ctx, h.SID, now)
	if err != nil {
		return nil, err
	}
	v := &Leaver{SID: h.SID, Account: h.Account, DN: account.DN, State: string(account.State), Why: account.Why, Since: since, Due: since.Add(c.o.Grace)}
	v.IsDue = !v.Due.After(now)
	if h.Account == string(h.SID) { // others asked for its certificates
		v.Account = cmp.Or(account.Name, h.Account)
	}
	some := false
	for _, row := range rows {
		cert := Certificate{Request: row.ID, Template: row.Template, CA: row.CA, Serial: row.Serial, NotAfter: row.NotAfter, Archived: row.Archived, row: row}
		if row.Profile.EnrolleeSubject {
			cert.Keep = "it names another subject, " + row.Profile.SubjectText + ", for which the account only asked"
		} else {
			some = true
		}
		v.Certificates = append(v.Certificates, cert)
	}
	if !some {
		return nil, nil
	}
	return v, nil
}

// judge counts, and holds everything where the numbers look like a mistake: also before anybody is due, so that there is time
// to put it right.
func (c *Checker) judge(r *Report) {
	slices.SortFunc(r.Leavers, func(a, b Leaver) int { return a.Since.Compare(b.Since)*2 + strings.Compare(a.Account, b.Account) })
	r.Gone = len(r.Leavers)
	for _, v := range r.Leavers {
		if v.IsDue {
			r.Due++
		}
	}
	switch {
	case r.Due > c.o.MaxPerRun:
		r.Held = fmt.Sprintf("%d accounts are due at once, more than leavers.max_per_run (%d)", r.Due, c.o.MaxPerRun)
	case r.Gone > fewGone && r.Gone*100 > c.o.MaxPercent*r.Known:
		r.Held = fmt.Sprintf("%d of %d accounts are gone, more than leavers.max_percent (%d)", r.Gone, r.Known, c.o.MaxPercent)
	}
}

// revoke revokes the certificates of one account. What fails stays recorded and is due again at the next check.
func (c *Checker) revoke(ctx context.Context, v *Leaver) (revoked int) {
	why := fmt.Sprintf("the account %s is %s since %s", v.Account, v.State, v.Since.UTC().Format(time.RFC3339))
	var serials []string
	for i := range v.Certificates {
		cert := &v.Certificates[i]
		if cert.Keep != "" {
			continue
		}
		if err := c.o.Revoke(ctx, cert.row, actorName, c.o.Reason, why); err != nil {
			v.Error = err.Error()
			continue
		}
		cert.Revoked = true
		serials = append(serials, cert.Serial)
	}
	log := c.o.Log.WithFields(logrus.Fields{"account": v.Account, "sid": v.SID, "state": v.State, "since": v.Since.UTC(), "revoked": serials})
	if v.Error == "" {
		// The clock is done with: if the account comes back and goes again, it has a new one.
		if err := c.o.Ledger.RecordLeavers(ctx, nil, []security.SID{v.SID}); err != nil {
			v.Error = err.Error()
		}
	}
	if v.Error != "" {
		log.WithField("error", v.Error).Error("not every certificate of an account that is gone could be revoked; this is tried again")
	} else {
		log.Warn("the certificates of an account that is gone are revoked")
	}
	return len(serials)
}
