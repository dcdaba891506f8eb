// Package doctor looks for what keeps clients from enrolling: at the configuration, the directory, Kerberos, the network and
// the machine.
//
// Examine makes every check there is, at the same time, each with a limit of its own. What a check finds is one or several
// Findings: what is well, what is not, with what to do, and what could not be found out, with the reason. It changes nothing
// but what opening the gateway's database changes.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/sirupsen/logrus"
)

// Outcome is what became of a check.
type Outcome string

// The outcomes.
const (
	OK        Outcome = "ok"
	Attention Outcome = "attention" // something has to be done
	Unknown   Outcome = "unknown"   // it could not be found out
)

// Finding is what a check found.
type Finding struct {
	Check   string  `json:"check"`
	Subject string  `json:"subject,omitempty"` // what was looked at
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason"`
	Fix     string  `json:"fix,omitempty"`
}

// Report is everything that was found, in the order of the checks.
type Report struct {
	Attention int       `json:"attention"` // how many findings need it
	Unknown   int       `json:"unknown"`
	Findings  []Finding `json:"findings"`
}

// Options say where the configuration is and how long to wait.
type Options struct {
	Path    string        // of the configuration file
	Timeout time.Duration // for each check; 10 seconds if zero
}

// DefaultTimeout bounds a check.
const DefaultTimeout = 10 * time.Second

// notMade says why a check was not made.
type notMade struct{ reason string }

func (e notMade) Error() string { return e.reason }

// check is one thing to look at. It returns what it has found; an error is why it could not find out more.
type check struct {
	name string
	do   func(ctx context.Context, p *patient) ([]Finding, error)
}

// patient is what is looked at. Parts that are not there say why.
type patient struct {
	cfg     *config.Config
	path    string
	timeout time.Duration

	gateway    *gateway.Gateway
	gatewayErr error // why there is none
	forest     *ldapsync.Forest
	forestErr  error // why it cannot be read
}

// checks are all, in the order of the report.
func checks() []check {
	return []check{
		{"database", database}, {"gateway", running},
		{"directory", directory}, {"clock", clock}, {"dns", names},
		{"enrollment service", services}, {"templates", offers}, {"cas", authorities},
		{"spn", principals}, {"keytab", keytabs}, {"ticket", ticket},
		{"port", ports}, {"activation", activation}, {"tls", certificate},
		{"agents", agents}, {"disk", disk}, {"memory", memoryOf},
	}
}

// Examine makes all checks. It has no error: what goes wrong is in the report.
func Examine(ctx context.Context, o Options) *Report {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	r := &Report{Findings: []Finding{}}
	cfg, err := config.Load(o.Path)
	if err != nil {
		r.add(Finding{Check: "configuration", Subject: o.Path, Outcome: Attention, Reason: err.Error(), Fix: "correct the file until enrollgate config check is content; nothing else can be looked at before"})
		return r
	}
	r.add(Finding{Check: "configuration", Subject: o.Path, Outcome: OK, Reason: "it can be used"})
	p := &patient{cfg: cfg, path: o.Path, timeout: o.Timeout}
	defer p.open(ctx)()
	list := checks()
	answers := make([]chan []Finding, len(list))
	for i, c := range list {
		answers[i] = make(chan []Finding, 1)
		go func() { answers[i] <- c.run(ctx, p) }()
	}
	for _, a := range answers {
		for _, f := range <-a {
			r.add(f)
		}
	}
	return r
}

func (r *Report) add(f Finding) {
	switch f.Outcome {
	case Attention:
		r.Attention++
	case Unknown:
		r.Unknown++
	}
	r.Findings = append(r.Findings, f)
}

// run makes one check within its time. What a check does not finish, goes on in the dark.
func (c check) run(ctx context.Context, p *patient) []Finding {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	type answer struct {
		findings []Finding
		err      error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- answer{err: fmt.Errorf("panic: %v", r)}
			}
		}()
		findings, err := c.do(ctx, p)
		done <- answer{findings, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-ctx.Done():
		select { // what noticed the end itself still says what it has found
		case a = <-done:
		case <-time.After(time.Second):
			a.err = ctx.Err()
		}
	}
	for i := range a.findings {
		a.findings[i].Check = c.name
	}
	if a.err != nil {
		reason := a.err.Error()
		if errors.Is(a.err, context.DeadlineExceeded) {
			reason = fmt.Sprintf("not finished within %v", p.timeout)
		}
		a.findings = append(a.findings, Finding{Check: c.name, Outcome: Unknown, Reason: reason})
	}
	return a.findings
}

// open makes the parts ready, each within the time of a check, and returns what closes them.
func (p *patient) open(ctx context.Context) (closeAll func()) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	opened := make(chan struct{})
	go func() {
		p.gateway, p.gatewayErr = within(ctx, p.timeout, func(ctx context.Context) (*gateway.Gateway, error) { return gateway.New(ctx, p.cfg, log) })
		close(opened)
	}()
	p.forest, p.forestErr = within(ctx, p.timeout, func(ctx context.Context) (*ldapsync.Forest, error) { return readForest(ctx, p, log) })
	<-opened
	if p.gatewayErr == nil && p.forestErr == nil {
		p.gateway.Directory = p.forest
	}
	return func() {
		if p.forestErr == nil {
			p.forest.Close()
		}
		if p.gatewayErr == nil {
			_ = p.gateway.Close()
		}
	}
}

// readForest reads the directory as it is now, not as the gateway has saved it.
func readForest(ctx context.Context, p *patient, log logrus.FieldLogger) (*ldapsync.Forest, error) {
	c, err := gateway.DirectoryConfig(p.cfg)
	if err != nil {
		return nil, err
	}
	c.StateFile = "" // that is the gateway's
	c.Timeout = min(c.Timeout, p.timeout)
	f, err := ldapsync.NewForest(c, nil, log)
	if err == nil {
		err = f.Refresh(ctx)
	}
	return f, err
}

// within waits for something for a limited time.
func within[T any](ctx context.Context, limit time.Duration, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := do(ctx)
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("not finished within %v", limit)
	}
}

// needGateway is an error where the gateway could not be opened; the check "database" has said why.
func (p *patient) needGateway() error {
	if p.gatewayErr != nil {
		return notMade{"needs what the check of the database could not open"}
	}
	return nil
}

// snapshot is what the directory says; without it there is an error, and the check "directory" has said why.
func (p *patient) snapshot() (*templates.Snapshot, error) {
	if p.forestErr != nil {
		return nil, notMade{"needs the directory, which cannot be read"}
	}
	return p.forest.Snapshot(), nil
}

func well(subject, format string, args ...any) Finding {
	return Finding{Subject: subject, Outcome: OK, Reason: fmt.Sprintf(format, args...)}
}

func bad(subject, fix, format string, args ...any) Finding {
	return Finding{Subject: subject, Outcome: Attention, Fix: fix, Reason: fmt.Sprintf(format, args...)}
}

func unknown(subject, format string, args ...any) Finding {
	return Finding{Subject: subject, Outcome: Unknown, Reason: fmt.Sprintf(format, args...)}
}
