package gateway

import (
	"net/http"
	"time"

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
	}
	m.registry.MustRegister(m.requests, m.duration, m.steps, m.policies, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watch adds gauges that are read from the gateway when somebody looks.
func (m *metrics) watch(g *Gateway) {
	m.registry.MustRegister(
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
		}))
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
