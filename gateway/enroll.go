package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/ledger"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
	"github.com/sirupsen/logrus"
)

// Submission is a request as a listener received it.
type Submission struct {
	Caller    templates.Caller
	CA        string // as the client named it
	Transport string // transportKerberos or another
	// Renews is the client certificate that the caller is known by. A request that says nothing of a renewal renews it: TLS
	// has proven the old key as a signature in the request would.
	Renews  *templates.Proof
	Request []byte // PKCS#10, CMC or PKCS#7
	// Attributes came beside the request ([MS-WCCE] 2.2.2.7.10). Only CertificateTemplate is used: names in attributes
	// would let a client choose its own subject.
	Attributes []wcce.NameValue
}

// Reply is the answer to a submission or a poll.
type Reply struct {
	RequestID   int64
	State       ledger.State
	Message     string
	Certificate *x509.Certificate   // nil while pending
	Full        []byte              // CMC full response
	Chain       []*x509.Certificate // of the CA, root first
	RetryAfter  time.Duration       // while pending: when asking again is worth it; 0 where a person decides
}

// Enroll takes one request through the whole journey. An error is what the client is told; the ledger has the request
// then too, unless it could not even be read.
func (g *Gateway) Enroll(ctx context.Context, s Submission) (reply *Reply, err error) {
	started := g.now()
	defer func() { g.metrics.enrolled(reply, err, g.now().Sub(started)) }()
	laps := g.metrics.laps()

	request, err := decode(s)
	laps.done("decode", err)
	if err != nil {
		return nil, err
	}
	ruling, err := g.decide(ctx, s, request)
	if err != nil {
		laps.done("decide", err)
		return nil, err
	}
	ca, decision := ruling.ca, ruling.decision
	row, refused := newRow(s, ruling, request), decision.Err()
	laps.done("decide", refused)
	if refused != nil {
		return nil, g.deny(ctx, row, refused)
	}
	// What no CA could ever sign is refused before anything is archived.
	signers, err := able(g.signersFor(ruling.plan, row.Fingerprint), upstream.Order{CSR: row.CSR, PublicKey: request.CSR.PublicKey, Profile: row.Profile})
	if err != nil {
		return nil, g.deny(ctx, row, err)
	}
	row.Issuer, row.Route = signers[0].Name, names(signers)
	record, err := g.openArchivedKey(ca, request, ruling)
	laps.done("archive", err)
	if err != nil {
		return nil, g.deny(ctx, row, err)
	}
	err = g.begin(ctx, row, record)
	laps.done("record", err)
	if err != nil {
		if earlier, ok := errors.AsType[*ledger.DuplicateError](err); ok {
			return g.await(ctx, ca, earlier.ID)
		}
		return nil, err
	}
	if row.State == ledger.Pending {
		g.logRow(row, nil, "the request waits for a certificate manager")
		return g.reply(ctx, ca, row)
	}
	return g.issue(ctx, ca, row, true)
}

// logRow says in one line what became of a request; refusal is nil where it was not refused.
func (g *Gateway) logRow(row *ledger.Row, refusal *hresult.Error, text string) {
	log := g.Log.WithFields(logrus.Fields{"request": row.ID, "caller": row.Caller, "template": row.Template, "ca": row.CA, "transport": row.Transport,
		"archived": row.Archived, "serial": row.Serial, "state": row.State})
	if refusal == nil {
		log.Info(text)
		return
	}
	log = log.WithFields(logrus.Fields{"code": refusal.Code.String(), "fix": refusal.Fix})
	if refusal.Cause != nil {
		log = log.WithError(refusal.Cause)
	}
	log.Warn(text)
}

// decode reads and verifies the request.
func decode(s Submission) (*wcce.Request, error) {
	request, err := wcce.ParseRequest(s.Request)
	if err != nil {
		return nil, err
	}
	for _, a := range s.Attributes {
		switch strings.ToLower(a.Name) {
		case "certificatetemplate":
			if err := request.NameTemplate(a.Value); err != nil {
				return nil, err
			}
		case "requestername":
			return nil, hresult.New(hresult.InvalidArg, "the request attributes name an account that the request is for (%q): only what an enrollment agent signs may", a.Value)
		}
	}
	return request, nil
}

// ruling is what was decided about a request.
type ruling struct {
	ca       *CA
	subject  security.SID // whom the certificate is for
	decision *templates.Decision
	owner    escrow.Owner // of a key that is archived
	plan     plan         // who signs
}

// decide asks policy. The error is a failure to decide; a refusal is in the decision.
func (g *Gateway) decide(ctx context.Context, s Submission, request *wcce.Request) (*ruling, error) {
	ca := g.CA(s.CA)
	if ca == nil {
		return nil, hresult.New(hresult.InvalidArg, "there is no CA %q here", s.CA)
	}
	in, err := g.parties(ctx, s.Caller, request)
	if err != nil {
		return nil, err
	}
	f, err := g.facts(ctx, request)
	if err != nil {
		return nil, err
	}
	if f.Renewal == nil {
		f.Renewal = s.Renews
	}
	if f.Renewal != nil && !f.ArchivedKey {
		// A renewal that keeps its key need not enclose it again. What a client says about an old certificate proves
		// nothing: only the escrow knows whether the key is there.
		if f.KeyInEscrow, err = g.Escrow.Has(ctx, request.CSR.RawSPKI); err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the escrow cannot be read; try again")
		}
	}
	snapshot := g.Directory.Snapshot()
	in.Hazards, _ = g.hazards(snapshot)
	in.Snapshot, in.MaxAge = snapshot, g.Config.Directory.MaxAge
	in.Template, in.Request, in.Now = templates.Reference(request.Template), f, g.now()
	in.RenewalOnly, in.NoPublishing = s.Transport == transportCertificate, !g.Config.Publish.Enabled
	owner := g.ownerOf(ctx, in)
	where, err := g.planFor(ctx, ca, owner.Template, in)
	if err != nil {
		return nil, err
	}
	in.Authority = g.authority(ca, where)
	in.Authority.Archival = g.archival(owner)
	decision := templates.Decide(in)
	g.lintCertificate(&decision, f.PublicKey)
	return &ruling{ca, in.Subject.SID, &decision, owner, where}, nil
}

func newRow(s Submission, r *ruling, request *wcce.Request) *ledger.Row {
	d := r.decision
	fingerprint := sha256.Sum256(s.Request)
	row := &ledger.Row{
		State: ledger.Open, Caller: s.Caller.Principal, CallerSID: s.Caller.SID, SubjectSID: r.subject, Template: d.Template, CA: r.ca.Name, Transport: s.Transport,
		Fingerprint: fingerprint[:], CSR: request.CSR.Raw, Profile: d.Profile, Checks: d.Checks,
	}
	if d.Outcome == templates.Pend {
		row.State, row.Message = ledger.Pending, messagePending
	}
	if d.Archive && request.Archived != nil {
		row.Archived, row.KeyHash = true, request.Archived.Hash
	}
	return row
}

// deny records a refusal and returns the error for the client, with the request's number.
func (g *Gateway) deny(ctx context.Context, row *ledger.Row, cause error) error {
	e := hresult.From(cause)
	row.State, row.HResult, row.Message, row.Archived = ledger.Denied, e.Code, e.ClientText(), false
	id, err := g.Ledger.Begin(ctx, row, nil)
	if err != nil {
		return hresult.Wrap(hresult.ServerUnavailable, errors.Join(err, cause), "the request could not be recorded")
	}
	row.ID = id
	g.logRow(row, e, "request ended: "+e.Text)
	return &Refusal{RequestID: id, Err: e}
}

// Refusal is an error about a request that has a number.
type Refusal struct {
	RequestID int64
	Err       *hresult.Error
}

func (r *Refusal) Error() string { return fmt.Sprintf("request %d: %v", r.RequestID, r.Err) }

// Unwrap returns the error for the client.
func (r *Refusal) Unwrap() error { return r.Err }

// openArchivedKey splits the private key off, proves it and seals it; nil where the template does not archive.
func (g *Gateway) openArchivedKey(ca *CA, request *wcce.Request, r *ruling) (*escrow.Record, error) {
	if !r.decision.Archive || request.Archived == nil {
		return nil, nil
	}
	return g.Escrow.Open(ca.Name, request, r.owner)
}

// begin makes the row and the sealed key durable, together, before any CA hears of the request: whatever happens from
// here on, an archival certificate without its key in escrow cannot come to be.
func (g *Gateway) begin(ctx context.Context, row *ledger.Row, record *escrow.Record) error {
	id, err := g.Ledger.Begin(ctx, row, func(tx *sql.Tx, id int64) error {
		if record == nil {
			return nil
		}
		_, err := record.Insert(tx, g.now(), id, "gateway", record.Owner, row.Profile.SubjectText)
		return err
	})
	if _, ok := errors.AsType[*ledger.DuplicateError](err); ok {
		return err
	}
	if err != nil {
		return hresult.Wrap(hresult.ServerUnavailable, err, "the request could not be recorded; try again")
	}
	row.ID = id
	return nil
}

// await answers a repeated request with the answer to the first one: at once if there is one, or as soon as there is,
// else that it is pending.
func (g *Gateway) await(ctx context.Context, ca *CA, id int64) (*Reply, error) {
	deadline := time.After(awaitTime)
	for {
		row, err := g.Ledger.Get(ctx, id)
		if err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the request could not be looked up; try again")
		}
		if row.State != ledger.Open {
			return g.reply(ctx, ca, row)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline:
			return g.reply(ctx, ca, row)
		case <-time.After(awaitPoll):
		}
	}
}

const (
	awaitTime = 10 * time.Second
	awaitPoll = 20 * time.Millisecond
)

// issue sends a row to the CA that signs, or asks about it, checks what comes back, closes the row and makes the reply. It is safe to
// repeat by whoever has claimed the row. first says that the row was recorded this moment.
func (g *Gateway) issue(ctx context.Context, ca *CA, row *ledger.Row, first bool) (*Reply, error) {
	if row.State == ledger.Approved {
		if err := g.checkStillEnabled(ctx, row); err != nil {
			return nil, err
		}
	}
	order, err := orderOf(row)
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // a client that goes away leaves nothing half done
	result, _ := g.attempt(ctx, row, order, first)
	next := *row
	next.Apply(result)
	reply := g.replyAhead(ctx, ca, &next)
	laps := g.metrics.laps()
	err = g.Ledger.Finish(ctx, row.ID, "gateway", result)
	laps.done("close", err)
	if err != nil { // somebody else finished it, or the disk failed: the ledger knows
		g.Log.WithError(err).WithField("request", row.ID).Warn("the result of a request could not be recorded")
		if row, err = g.Ledger.Get(ctx, row.ID); err != nil {
			return nil, hresult.Wrap(hresult.ServerUnavailable, err, "the result could not be recorded; ask again")
		}
		return g.reply(ctx, ca, row)
	}
	g.finished(ctx, row, result)
	return reply()
}

// attempt makes one attempt at an order, and tells how the row goes on; silent is why there is no answer.
func (g *Gateway) attempt(ctx context.Context, row *ledger.Row, order upstream.Order, first bool) (result ledger.Result, silent error) {
	asking, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	laps := g.metrics.laps()
	signer, answer, err := g.dispatch(asking, row, order, first)
	laps.done("issue", err)
	if err == nil {
		return g.check(ctx, signer, row, order, answer), nil
	}
	// The answer is lost, not the request: the row stays and is resumed.
	result = g.unanswered(row, signer, err)
	if result.Trouble != "" {
		g.Log.WithError(err).WithField("request", row.ID).Error("the CA gave no answer; the request is resumed later")
	}
	return result, err
}

// finished brings a row up to its result, which is durable, and says so in the log.
func (g *Gateway) finished(ctx context.Context, row *ledger.Row, result ledger.Result) {
	if row.Apply(result); result.State == ledger.Waiting {
		return
	}
	var refusal *hresult.Error
	if result.HResult != 0 {
		refusal = hresult.New(result.HResult, "%s", result.Message)
	}
	g.logRow(row, refusal, fmt.Sprintf("request ended: %s: %s", result.State, result.Message))
	if result.State == ledger.Failed && result.Certificate != nil {
		if err := g.Revoke(ctx, row, "gateway", reasonCessation); err != nil {
			g.Log.WithError(err).WithField("request", row.ID).Errorf("certificate %s, which is not as decided, could not be revoked: revoke it at the CA", row.Serial)
		}
	}
}

// checkStillEnabled refuses a request of which an account, the subject's or the caller's, was disabled or deleted while it
// waited for a manager. Where the directory cannot be asked the request stays approved, for later.
func (g *Gateway) checkStillEnabled(ctx context.Context, row *ledger.Row) error {
	subject, err := g.Directory.Subject(ctx, row.SubjectSID)
	if err == nil && !subject.Disabled && row.CallerSID != row.SubjectSID {
		subject, err = g.Directory.Subject(ctx, row.CallerSID)
	}
	switch {
	case err == nil && !subject.Disabled:
		return nil
	case err == nil:
		err = hresult.New(hresult.AccountDisabled, "the account %s was disabled while the request waited", subject.SAMAccount)
	case hresult.From(err).Code != hresult.NoSuchUser:
		return err
	}
	e := hresult.From(err)
	if err := g.Ledger.Finish(ctx, row.ID, "gateway", ledger.Result{State: ledger.Denied, HResult: e.Code, Message: e.Text}); err != nil {
		return hresult.Wrap(hresult.ServerUnavailable, err, "the refusal could not be recorded; ask again for request %d", row.ID)
	}
	return &Refusal{RequestID: row.ID, Err: e}
}

// orderOf is what the CA gets: the PKCS#10 request, never the message that the archived key was in.
func orderOf(row *ledger.Row) (upstream.Order, error) {
	csr, err := wcce.ParseCSR(row.CSR)
	if err != nil {
		return upstream.Order{}, fmt.Errorf("request %d: stored request: %w", row.ID, err)
	}
	return upstream.Order{
		ID:  fmt.Sprintf("%d-%x", row.ID, row.Fingerprint),
		CSR: csr.Raw, PublicKey: csr.PublicKey, Profile: row.Profile,
	}, nil
}

// check turns the CA's answer into the row's result, with where an issued certificate is wanted. A certificate that differs from the decision is recorded, and not handed out.
func (g *Gateway) check(ctx context.Context, signer *CA, row *ledger.Row, order upstream.Order, answer upstream.Result) ledger.Result {
	waiting := ledger.Result{State: ledger.Waiting, Message: messagePending, CAToken: answer.Token}
	switch answer.State {
	case upstream.Pending:
		waiting.Due = g.pollAgain(row)
		return waiting
	case upstream.Uncertain:
		waiting.CAToken, waiting.Doubt = row.CAToken, cmp.Or(answer.Reason, "the CA cannot tell")
		g.Log.WithField("request", row.ID).Errorf("nobody can tell whether CA %q has issued the certificate: %s; settle it with: enrollgate requests settle %d", signer.Name, waiting.Doubt, row.ID)
		return waiting
	case upstream.Refused:
		return ledger.Result{State: ledger.Denied, HResult: hresult.BadRequestStatus, Message: "the CA refused the request: " + answer.Reason}
	case upstream.Issued:
	default:
		return ledger.Result{State: ledger.Failed, HResult: hresult.Unexpected, Message: "the CA does not know the order"}
	}
	if answer.Certificate == nil {
		return ledger.Result{State: ledger.Failed, HResult: hresult.Unexpected, Message: "the CA says that it has issued, and there is no certificate"}
	}
	if err := upstream.Compare(order, answer.Certificate, signer.Tolerance); err != nil {
		text := fmt.Sprintf("the CA issued another certificate than decided: %v", err)
		g.Log.WithField("order", order.ID).Error(text)
		return ledger.Result{State: ledger.Failed, HResult: hresult.Unexpected, Message: text, Certificate: answer.Certificate}
	}
	result := ledger.Result{State: ledger.Issued, Certificate: answer.Certificate, Message: messageIssued}
	if row.Profile.PublishToDS {
		result.Publish = append(result.Publish, ledger.Target{Place: ledger.PlaceAccount, Name: string(row.SubjectSID)})
	}
	if row.Profile.PublishToKRA {
		result.Publish = append(result.Publish, ledger.Target{Place: ledger.PlaceKRA, Name: row.CA})
	}
	return result
}

// The disposition messages of AD CS ([MS-WCCE] 3.2.1.4.2.1).
const (
	messageIssued  = "Issued"
	messagePending = "Taken Under Submission"
)

const reasonCessation = 5 // cessationOfOperation (RFC 5280 5.3.1)
