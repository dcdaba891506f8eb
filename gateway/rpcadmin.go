package gateway

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/rpc/certadmin"
	"github.com/enrollgate/enrollgate/gateway/rpc/certrequest"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// adminBackend lets the COM interfaces of certificate managers call the gateway.
type adminBackend struct {
	g       *Gateway
	brake   *brake
	reading chan struct{} // a place for each who reads many requests
	readers *confirmed
}

// confirmed are certificate managers whom the directory has confirmed within the last minute.
type confirmed struct {
	mu    sync.Mutex           // guards until
	until map[string]time.Time // by realm and SID
}

const (
	confirmedFor    = time.Minute
	confirmedMemory = 1000
)

// Views may be restricted by what no index has: whoever asks so reads all requests, which others must not feel.
const (
	readers  = 4
	viewTime = 20 * time.Second
)

// AdminInterfaces are the COM interfaces of certificate managers, for a class of objects: certadmin.CLSID.
func (g *Gateway) AdminInterfaces() []server.Interface {
	return certadmin.New(g.adminBackend(), g.now).Interfaces()
}

func (g *Gateway) adminBackend() adminBackend {
	return adminBackend{g, &brake{now: g.now, failures: map[string]*attempts{}}, make(chan struct{}, readers), &confirmed{until: map[string]time.Time{}}}
}

// CA implements certadmin.Backend.
func (b adminBackend) CA(authority string) string {
	if authority == "" && len(b.g.CAs) == 1 { // of several none is meant: what is done to one is not done to another
		return b.g.CAs[0].Name
	}
	return rpcBackend{b.g}.CA(authority)
}

// Manager implements certadmin.Backend. A ticket may be hours old: who reads has to be a manager in the directory too, a minute ago at most.
func (b adminBackend) Manager(ctx context.Context, caller templates.Caller) (bool, error) {
	is, err := b.g.isOneOf(ctx, caller.Token(), b.g.Config.CertificateManagers)
	if err != nil || !is {
		return false, err
	}
	now, c, who := b.g.now(), b.readers, caller.Realm+" "+string(caller.SID)
	c.mu.Lock()
	recently := now.Before(c.until[who])
	c.mu.Unlock()
	if recently {
		return true, nil
	}
	if is, err = b.g.isStillOneOf(ctx, caller, b.g.Config.CertificateManagers); err != nil || !is {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.until) >= confirmedMemory {
		clear(c.until)
	}
	c.until[who] = now.Add(confirmedFor)
	return true, nil
}

// mayAct requires a certificate manager whom the directory knows as such now, for what changes something. Who is refused too often waits.
func (b adminBackend) mayAct(ctx context.Context, caller templates.Caller, what string) error {
	if err := b.brake.check(caller.Principal); err != nil {
		return err
	}
	is, err := b.g.isStillOneOf(ctx, caller, b.g.Config.CertificateManagers)
	if err == nil && !is {
		err = certadmin.NotManager(caller.Principal)
	}
	if err != nil && hresult.From(err).Code == hresult.AccessDenied {
		b.refused(caller, what, err)
	}
	return err
}

func (b adminBackend) refused(caller templates.Caller, what string, err error) {
	b.brake.failed(caller.Principal)
	b.g.Log.WithField("caller", caller.Principal).WithField("attempt", what).WithError(err).Warn("a certificate manager's action was refused")
}

// pending finds a request that may be decided by the caller. Its own, or one that is for him, nobody decides.
func (b adminBackend) pending(ctx context.Context, caller templates.Caller, ca string, id int64) (*ledger.Row, error) {
	row, err := b.row(ctx, ca, id)
	if err != nil {
		return nil, err
	}
	if row.CallerSID == caller.SID || row.SubjectSID == caller.SID {
		err := hresult.New(hresult.AccessDenied, "request %d is your own, or for you: another certificate manager decides about it", id)
		b.refused(caller, "decide", err)
		return nil, err
	}
	return row, nil
}

func (b adminBackend) row(ctx context.Context, ca string, id int64) (*ledger.Row, error) {
	row, err := b.g.Ledger.Get(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && !strings.EqualFold(row.CA, ca) {
		return nil, hresult.New(hresult.PropertyEmpty, "CA %q has no request %d", ca, id)
	}
	if err != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the request could not be looked up; try again")
	}
	return row, nil
}

// Approve implements certadmin.Backend. It records the approval as enrollgate requests approve does, and issues at once.
func (b adminBackend) Approve(ctx context.Context, caller templates.Caller, ca string, id int64) (uint32, error) {
	if err := b.mayAct(ctx, caller, "approve"); err != nil {
		return 0, err
	}
	row, err := b.pending(ctx, caller, ca, id)
	if err != nil {
		return 0, err
	}
	if row.State != ledger.Pending {
		return uint32(hresult.BadRequestStatus), nil
	}
	if err := b.decide(ctx, id, caller, true, "Resubmitted by "+caller.Principal); err != nil {
		return 0, err
	}
	if row, err = b.g.Ledger.Get(ctx, id); err != nil {
		return 0, hresult.Wrap(hresult.ServerUnavailable, err, "the approved request could not be looked up")
	}
	addressed := b.g.CA(row.CA)
	if addressed != nil && b.g.worthAsking(row) {
		if _, err := b.g.takeOver(ctx, addressed, row); err != nil {
			if refusal, ok := errors.AsType[*Refusal](err); ok {
				return uint32(refusal.Err.Code), nil
			}
			b.g.Log.WithError(err).WithField("request", id).Warn("an approved request could not be issued at once; it is resumed later")
		}
	}
	return b.outcome(ctx, id), nil
}

// approvedTime is how long an approval waits for the certificate, which another part of the gateway may work on.
const approvedTime = 5 * time.Second

// outcome is what became of a request that was approved; what is not known yet is pending.
func (b adminBackend) outcome(ctx context.Context, id int64) uint32 {
	deadline := time.After(approvedTime)
	for {
		row, err := b.g.Ledger.Get(ctx, id)
		switch {
		case err != nil || row.State == ledger.Waiting:
			return request.UnderSubmission
		case row.State == ledger.Issued:
			return request.Issued
		case row.State == ledger.Denied || row.State == ledger.Failed:
			return uint32(row.HResult)
		}
		select {
		case <-ctx.Done():
			return request.UnderSubmission
		case <-deadline:
			return request.UnderSubmission
		case <-time.After(awaitPoll):
		}
	}
}

// decide records a decision; that somebody else was faster is the fault of the request's state.
func (b adminBackend) decide(ctx context.Context, id int64, caller templates.Caller, approve bool, reason string) error {
	err := b.g.Ledger.Decide(ctx, id, caller.Principal, approve, reason)
	if err == nil {
		b.g.Log.WithField("request", id).WithField("caller", caller.Principal).WithField("approved", approve).Info("a certificate manager has decided")
		return nil
	}
	if row, lookup := b.g.Ledger.Get(ctx, id); lookup == nil && row.State != ledger.Pending {
		return hresult.Wrap(hresult.BadRequestStatus, err, "request %d is %s: only pending ones are decided", id, row.State)
	}
	return hresult.Wrap(hresult.ServerUnavailable, err, "the decision could not be recorded; try again")
}

// Deny implements certadmin.Backend.
func (b adminBackend) Deny(ctx context.Context, caller templates.Caller, ca string, id int64) error {
	if err := b.mayAct(ctx, caller, "deny"); err != nil {
		return err
	}
	row, err := b.pending(ctx, caller, ca, id)
	if err != nil {
		return err
	}
	if row.State != ledger.Pending {
		return hresult.New(hresult.BadRequestStatus, "request %d is %s: only pending ones are decided", id, row.State)
	}
	return b.decide(ctx, id, caller, false, "Denied by "+caller.Principal)
}

// Revoke implements certadmin.Backend.
func (b adminBackend) Revoke(ctx context.Context, caller templates.Caller, ca, serial string, reason int) error {
	if err := b.mayAct(ctx, caller, "revoke"); err != nil {
		return err
	}
	row, err := b.certificate(ctx, ca, serial)
	if err != nil {
		return err
	}
	if !row.Revoked.IsZero() {
		return hresult.New(hresult.InvalidData, "the certificate %s of request %d is revoked already", serial, row.ID)
	}
	if err := b.g.Revoke(ctx, row, caller.Principal, reason); err != nil {
		b.g.Log.WithError(err).WithField("request", row.ID).Error("a certificate could not be revoked")
		return hresult.Wrap(hresult.ServerUnavailable, err, "the CA could not be told; the gateway's log says why")
	}
	return nil
}

// certificate finds the request of a certificate that was handed out. Several CAs may sign for the one that clients see, and two of them
// may have given the same serial number: which certificate is meant nobody guesses.
func (b adminBackend) certificate(ctx context.Context, ca, serial string) (*ledger.Row, error) {
	rows, err := b.g.Ledger.Page(ctx, ledger.Query{CA: ca, Serial: serial, Kinds: []ledger.Kind{ledger.KindIssued, ledger.KindRevoked}, Limit: 2})
	switch {
	case err != nil:
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the certificate could not be looked up; try again")
	case len(rows) == 0:
		return nil, hresult.New(hresult.InvalidArg, "CA %q has no certificate %s", ca, serial)
	case len(rows) > 1:
		return nil, hresult.New(hresult.InvalidArg, "the requests %d and %d both have a certificate %s, of the CAs %q and %q", rows[0].ID, rows[1].ID, serial, rows[0].Issuer, rows[1].Issuer).
			WithFix("revoke the one that is meant on the gateway, or at its CA")
	}
	return rows[0], nil
}

// ArchivedKey implements certadmin.Backend: what enrollgate escrow export writes, to managers of the key's recovery policy. It stays sealed.
// An attempt that is refused is in the audit log, as those by cases are.
func (b adminBackend) ArchivedKey(ctx context.Context, caller templates.Caller, ca string, id int64) ([]byte, error) {
	if err := b.brake.check(caller.Principal); err != nil {
		return nil, err
	}
	der, err := b.archivedKey(ctx, caller, ca, id)
	if err != nil && hresult.From(err).Code == hresult.AccessDenied {
		b.refused(caller, "archived key", err)
		return nil, b.g.roles().Refused(ctx, caller, "getkey", map[string]any{"request": id}, err)
	}
	return der, err
}

func (b adminBackend) archivedKey(ctx context.Context, caller templates.Caller, ca string, id int64) ([]byte, error) {
	g, roles := b.g, b.g.roles()
	managed, err := roles.All(ctx, caller, func(r people.Role) bool { return r.Manager })
	if err != nil { // what keys there are is nobody else's business
		return nil, err
	}
	row, err := b.row(ctx, ca, id)
	if err != nil {
		return nil, err
	}
	nothing := hresult.New(hresult.PropertyEmpty, "no key of request %d is archived", id)
	if row.State != ledger.Issued || !row.Archived {
		return nil, nothing
	}
	entry, err := b.entryOf(ctx, row)
	if errors.Is(err, escrow.ErrNotFound) {
		return nil, nothing
	} else if err != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the archived key could not be looked up; try again")
	}
	if managed.Open[entry.Policy] == nil {
		return nil, hresult.New(hresult.AccessDenied, "you are no manager of the recovery policy %q", entry.Policy).
			WithFix("managers are named under escrow.policies in the gateway's configuration")
	}
	if needed, err := g.Escrow.Needed(entry); err != nil || needed > 1 {
		return nil, hresult.New(hresult.AccessDenied, "the archived key %d takes %d agents by the recovery policy %q, which certutil cannot do", entry.ID, max(needed, entry.Required), entry.Policy).
			WithFix("open a case for it: enrollgate recovery open --owner %s", entry.Owner)
	}
	agents, err := g.Escrow.RecipientsOf(ctx, entry)
	if err != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the recovery agents could not be looked up; try again")
	}
	for _, a := range agents {
		holder, err := roles.HolderOf(ctx, a.Certificate)
		if err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the recovery agents could not be looked up; try again")
		}
		if holder == caller.SID {
			return nil, hresult.New(hresult.AccessDenied, "you are an agent who can open the archived key %d alone: another manager fetches it", entry.ID)
		}
	}
	signer, err := g.BlobSigner(ctx, entry.CA())
	if err != nil {
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the recovery blob cannot be signed now")
	}
	der, err := g.Escrow.ExportBlob(ctx, entry, signer, caller.Principal, fmt.Sprintf("fetched by RPC (GetArchivedKey of request %d)", id))
	if err != nil {
		return nil, hresult.Wrap(hresult.PropertyEmpty, err, "%v", err)
	}
	return der, nil
}

// entryOf is the archived key of a request. Certificates of several CAs may have the same serial number.
func (b adminBackend) entryOf(ctx context.Context, row *ledger.Row) (*escrow.Entry, error) {
	list, err := b.g.Escrow.Search(ctx, escrow.Query{Serial: row.Serial, Limit: len(b.g.issuers()) + 1})
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.RequestID == row.ID {
			return b.g.Escrow.Get(ctx, e.ID)
		}
	}
	return nil, escrow.ErrNotFound
}

// Property implements certadmin.Backend.
func (b adminBackend) Property(ctx context.Context, ca string, id, index, kind int32) ([]byte, error) {
	return certrequest.Property(ctx, rpcBackend{b.g}, ca, id, index, kind)
}

// PropertyInfo implements certadmin.Backend.
func (b adminBackend) PropertyInfo() (int32, []byte) { return certrequest.PropertyInfo() }

// Last implements certadmin.Backend.
func (b adminBackend) Last(ctx context.Context) (int64, error) {
	id, err := b.g.Ledger.LastID(ctx)
	if err != nil {
		return 0, hresult.Wrap(hresult.ServerUnavailable, err, "the requests cannot be read; try again")
	}
	return id, nil
}

// Account implements certadmin.Backend.
func (b adminBackend) Account(ctx context.Context, name string) (certadmin.Account, error) {
	subject, err := b.g.Directory.SubjectByName(ctx, name)
	if err != nil {
		return certadmin.Account{}, err
	}
	return certadmin.Account{SID: subject.SID}, nil
}

var kindsOf = map[certadmin.Disposition]ledger.Kind{certadmin.Active: ledger.KindQueued, certadmin.Pending: ledger.KindPending, certadmin.Issued: ledger.KindIssued,
	certadmin.Revoked: ledger.KindRevoked, certadmin.Failed: ledger.KindFailed, certadmin.Denied: ledger.KindDenied}

// Rows implements certadmin.Backend.
func (b adminBackend) Rows(ctx context.Context, q certadmin.Query) ([]*certadmin.Row, error) {
	query := ledger.Query{CA: q.CA, First: q.First, Last: q.Last, Caller: q.Requester, Template: q.Template, Serial: q.Serial, CommonName: q.CommonName, UPN: q.UPN, Hash: q.Hash, SubjectKeyID: q.SubjectKeyID, SubmittedFrom: q.SubmittedFrom,
		SubmittedTo: q.SubmittedTo, EndFrom: q.EndFrom, EndTo: q.EndTo, Descending: q.Descending, Skip: q.Skip, Limit: q.Limit}
	for _, d := range q.Dispositions {
		query.Kinds = append(query.Kinds, kindsOf[d])
	}
	snapshot := b.g.Directory.Snapshot()
	if snapshot != nil && strings.ContainsRune(q.Template, '.') {
		if t := snapshot.TemplateByOID(q.Template); t != nil {
			query.Template = t.Name
		}
	}
	ctx, cancel := context.WithTimeout(ctx, viewTime)
	defer cancel()
	select {
	case b.reading <- struct{}{}:
		defer func() { <-b.reading }()
	case <-ctx.Done():
		return nil, hresult.New(hresult.ServerTooBusy, "others read too many requests now; try again later")
	}
	rows, err := b.g.Ledger.Page(ctx, query)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, hresult.New(hresult.ServerTooBusy, "the requests that are asked for were not found within %s", viewTime).
			WithFix("restrict the view by the number of the request, the requester, or the common name, UPN, serial number, hash or subject key identifier of the certificate")
	case err != nil:
		return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the requests cannot be read; try again")
	}
	out := make([]*certadmin.Row, len(rows))
	for i, r := range rows {
		out[i] = adminRow(r, snapshot)
	}
	return out, nil
}

func adminRow(r *ledger.Row, snapshot *templates.Snapshot) *certadmin.Row {
	out := &certadmin.Row{ID: r.ID, Status: r.HResult, Message: r.Message, Submitted: r.Created, Revoked: r.Revoked, Requester: r.Caller, Template: r.Template,
		Subject: r.Profile.Subject, Request: r.CSR, Certificate: r.Certificate, Serial: r.Serial}
	kind := r.KindOf()
	for d, k := range kindsOf {
		if k == kind {
			out.Disposition = d
		}
	}
	switch kind {
	case ledger.KindQueued, ledger.KindPending:
		out.Certificate, out.Serial = nil, ""
	case ledger.KindFailed, ledger.KindDenied: // a certificate that was not handed out is not shown as issued
		out.Resolved, out.Certificate, out.Serial = r.Updated, nil, ""
	default:
		out.Resolved = r.Updated
	}
	if snapshot != nil {
		if t := snapshot.TemplateByName(r.Template); t != nil {
			out.TemplateOID = t.OID
		}
	}
	for _, e := range r.Profile.Extensions {
		if oid, ok := parseOID(e.OID); ok {
			out.Extensions = append(out.Extensions, pkix.Extension{Id: oid, Critical: e.Critical, Value: e.Value})
		}
	}
	return out
}

func parseOID(text string) (oid asn1.ObjectIdentifier, ok bool) {
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, false
		}
		oid = append(oid, n)
	}
	return oid, true
}
