package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit/witness"
	"github.com/enrollgate/enrollgate/gateway/escrow/coverage"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what an operator watches. Each gateway has a registry of its own.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration prometheus.Histogram
	steps    *prometheus.HistogramVec
	policies prometheus.Counter
	written  *prometheus.CounterVec
	leavers  prometheus.Counter
	held     prometheus.Gauge
	witness  *prometheus.GaugeVec
	alarm    *prometheus.GaugeVec
	calls    *prometheus.HistogramVec
	rpc      *rpcMetrics
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "enrollgate_requests_total",
			Help: "Certificate requests by outcome: issued, pending, or the HRESULT of the refusal."}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "enrollgate_request_duration_seconds",
			Help: "Time from the decoded message to the reply.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "enrollgate_step_duration_seconds",
			Help:    "Time of each step of a request's journey, by outcome: ok, or the HRESULT that ended the journey there.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18)}, []string{"step", "outcome"}),
		policies: prometheus.NewCounter(prometheus.CounterOpts{Name: "enrollgate_policy_requests_total", Help: "GetPolicies calls answered."}),
		written: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "enrollgate_publications_total",
			Help: "Certificates that were added to the directory or removed from it, and attempts that failed."}, []string{"outcome"}),
		leavers: prometheus.NewCounter(prometheus.CounterOpts{Name: "enrollgate_leavers_revoked_total",
			Help: "Certificates that were revoked because their account is gone."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "enrollgate_leavers_held",
			Help: "1 if so many accounts are gone that nothing is revoked before an operator confirms it."}),
	}
	m.witness = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "enrollgate_audit_witnessed_lines",
		Help: "Lines of the audit log that a witness has cosigned."}, []string{"witness"})
	m.alarm = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "enrollgate_audit_rolled_back",
		Help: "1 if a witness has seen more lines of the audit log than there are: it was put back to an earlier state."}, []string{"witness"})
	m.calls = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "enrollgate_ca_call_duration_seconds",
		Help: "Time of calls to CAs, by outcome: ok, failed, or open where it is not known whether the CA has issued.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)},
		[]string{"ca", "call", "outcome"})
	m.rpc = newRPCMetrics(m.registry)
	m.registry.MustRegister(m.calls, m.witness, m.alarm, m.requests, m.duration, m.steps, m.policies, m.written, m.leavers, m.held, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// witnessed says what became of a checkpoint at a witness.
func (m *metrics) witnessed(name string, lines int64, err error) {
	if _, ahead := errors.AsType[*witness.AheadError](err); ahead {
		m.alarm.WithLabelValues(name).Set(1)
	} else if err == nil {
		m.alarm.WithLabelValues(name).Set(0)
		m.witness.WithLabelValues(name).Set(float64(lines))
	}
}

// watch adds gauges that are read from the gateway when somebody looks.
func (m *metrics) watch(g *Gateway) {
	m.registry.MustRegister(dcomGauges(g)...)
	m.registry.MustRegister(agentCollector{g}, coverageCollector{g}, caCollector{g},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "enrollgate_directory_age_seconds",
			Help: "Age of the directory snapshot that decisions use; -1 before the first."}, func() float64 {
			if s := g.Directory.Snapshot(); s != nil {
				return g.now().Sub(s.Taken).Seconds()
			}
			return -1
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "enrollgate_archival_ready",
			Help: "1 if a key recovery agent is valid, so that archival templates are served."}, func() float64 {
			if g.Escrow.Ready() == nil {
				return 1
			}
			return 0
		}),
		publicationGauge(g, "enrollgate_publications_wanted", "Certificates that are not in the directory yet.", func(wanted, _ int64) int64 { return wanted }),
		publicationGauge(g, "enrollgate_publications_failing", "Certificates of which the last attempt to add or remove them failed.", func(_, failing int64) int64 { return failing }))
}

// agentCollector shows the health of recovery agents.
type agentCollector struct{ g *Gateway }

var (
	agentExpiry = prometheus.NewDesc("enrollgate_agent_not_after_timestamp_seconds",
		"When the certificate of a key recovery agent ends; 0 where it is revoked or cannot be used.", []string{"agent", "fingerprint"}, nil)
	agentsValid   = prometheus.NewDesc("enrollgate_agents_valid", "Key recovery agents with a valid certificate, by recovery policy.", []string{"policy"}, nil)
	agentsMinimum = prometheus.NewDesc("enrollgate_agents_minimum", "With fewer valid agents keys are not archived, by recovery policy.", []string{"policy"}, nil)
	belowQuorum   = prometheus.NewDesc("enrollgate_records_below_quorum", "Archived keys that too few agents can open, by recovery policy.", []string{"policy"}, nil)
)

// Describe implements prometheus.Collector.
func (agentCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{agentExpiry, agentsValid, agentsMinimum, belowQuorum} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c agentCollector) Collect(out chan<- prometheus.Metric) {
	h, err := c.g.healthNow(context.Background())
	if err != nil || h == nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, a := range h.Agents {
		end := float64(a.NotAfter.Unix())
		if a.State == "revoked" || a.State == "unusable" {
			end = 0
		}
		gauge(agentExpiry, end, a.Subject, a.Fingerprint)
	}
	for _, p := range h.Policies {
		gauge(agentsValid, float64(p.Valid), p.Name)
		gauge(agentsMinimum, float64(p.Minimum), p.Name)
		gauge(belowQuorum, float64(p.BelowQuorum), p.Name)
	}
}

// coverageCollector shows what the last look at encryption certificates has found.
type coverageCollector struct{ g *Gateway }

var (
	certificatesCovered = prometheus.NewDesc("enrollgate_escrow_certificates",
		"Valid encryption certificates issued here whose private key is held, missing, or closed: too few agents can open it.", []string{"state"}, nil)
	recordsUnproven = prometheus.NewDesc("enrollgate_escrow_unproven_records", "Archived keys of which no drill has proven that they can be opened.", nil, nil)
	oldestProof     = prometheus.NewDesc("enrollgate_escrow_oldest_proof_timestamp_seconds",
		"Of the archived keys that were proven, when the one was whose proof is longest ago; absent where there is none.", nil, nil)
	coverageAge = prometheus.NewDesc("enrollgate_escrow_coverage_age_seconds", "How long ago encryption certificates were looked at.", nil, nil)
	verifyAge   = prometheus.NewDesc("enrollgate_escrow_verify_age_seconds", "How long ago enrollgate escrow verify has checked every record; -1 where that was never done.", nil, nil)
	verifyBad   = prometheus.NewDesc("enrollgate_escrow_verify_bad_records", "Records that were bad then.", nil, nil)
)

// Describe implements prometheus.Collector.
func (coverageCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{certificatesCovered, recordsUnproven, oldestProof, coverageAge, verifyAge, verifyBad} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c coverageCollector) Collect(out chan<- prometheus.Metric) {
	w := c.g.watched.Load()
	if w == nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	total := w.Coverage.Total
	gauge(certificatesCovered, float64(total.Held), string(coverage.Held))
	gauge(certificatesCovered, float64(total.Missing), string(coverage.Missing))
	gauge(certificatesCovered, float64(total.Closed), string(coverage.Closed))
	gauge(recordsUnproven, float64(w.Unproven))
	if !w.Oldest.IsZero() {
		gauge(oldestProof, float64(w.Oldest.Unix()))
	}
	gauge(coverageAge, c.g.now().Sub(w.Taken).Seconds())
	age := -1.0
	if !w.Verified.IsZero() {
		age = c.g.now().Sub(w.Verified).Seconds()
	}
	gauge(verifyAge, age)
	gauge(verifyBad, float64(w.Bad))
}

// publicationGauge is -1 while the ledger cannot be read.
func publicationGauge(g *Gateway, name, help string, pick func(wanted, failing int64) int64) prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		wanted, failing, err := g.Ledger.PublicationCounts(context.Background())
		if err != nil {
			return -1
		}
		return float64(pick(wanted, failing))
	})
}

// called counts a call to a CA.
func (m *metrics) called(ca, call string, took time.Duration, err error) {
	outcome := "ok"
	switch {
	case err != nil && call == "submit" && !upstream.IsNotIssued(err):
		outcome = "open"
	case err != nil:
		outcome = "failed"
	}
	m.calls.WithLabelValues(ca, call, outcome).Observe(took.Seconds())
}

func (m *metrics) published(outcome string, n int) {
	m.written.WithLabelValues(outcome).Add(float64(n))
}

// left counts what a search for leavers has revoked, or that it was held.
func (m *metrics) left(revoked int, held bool) {
	m.leavers.Add(float64(revoked))
	m.held.Set(0)
	if held {
		m.held.Set(1)
	}
}

func (m *metrics) enrolled(reply *Reply, err error, took time.Duration) {
	outcome := "unknown"
	switch {
	case err != nil:
		outcome = hresult.From(err).Code.Name()
	case reply != nil:
		outcome = string(reply.State)
	}
	m.requests.WithLabelValues(outcome).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// laps measures the steps of one request.
type laps struct {
	m    *metrics
	last time.Time
}

func (m *metrics) laps() *laps { return &laps{m: m, last: time.Now()} }

// done ends a step; err is nil where the journey goes on.
func (l *laps) done(step string, err error) {
	now, outcome := time.Now(), "ok"
	if err != nil {
		outcome = hresult.From(err).Code.Name()
	}
	l.m.steps.WithLabelValues(step, outcome).Observe(now.Sub(l.last).Seconds())
	l.last = now
}
