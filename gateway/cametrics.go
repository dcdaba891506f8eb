package gateway

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// caCollector shows how CAs are: queues as they are now, the rest as it was looked at last.
type caCollector struct{ g *Gateway }

var (
	caDown    = prometheus.NewDesc("enrollgate_ca_down", "1 while a CA is left alone because it does not answer.", []string{"ca"}, nil)
	caWaiting = prometheus.NewDesc("enrollgate_ca_waiting", "Orders that wait for a CA.", []string{"ca"}, nil)
	caOldest  = prometheus.NewDesc("enrollgate_ca_oldest_seconds", "How long the oldest of them has waited.", []string{"ca"}, nil)
	caDoubt   = prometheus.NewDesc("enrollgate_ca_in_doubt", "Orders of which nobody can tell whether the CA has issued.", []string{"ca"}, nil)
	caEnds    = prometheus.NewDesc("enrollgate_ca_not_after_timestamp_seconds", "When the certificate of a CA ends.", []string{"ca"}, nil)
	caCRL     = prometheus.NewDesc("enrollgate_ca_crl_next_update_timestamp_seconds", "Until when a CA's revocation list is good; 0 where it cannot be had.", []string{"ca"}, nil)
	caOCSP    = prometheus.NewDesc("enrollgate_ca_ocsp_up", "1 if a CA's OCSP responder answers.", []string{"ca"}, nil)
)

// Describe implements prometheus.Collector.
func (caCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{caDown, caWaiting, caOldest, caDoubt, caEnds, caCRL, caOCSP} {
		out <- d
	}
}

// scrapeTime bounds how long a scrape waits for the ledger.
const scrapeTime = 5 * time.Second

// Collect implements prometheus.Collector.
func (c caCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, ca string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, ca)
	}
	for _, ca := range c.g.signers {
		down := 0.0
		if ca.Limits.Down() {
			down = 1
		}
		gauge(caDown, down, ca.Name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	if queues, err := c.g.Ledger.Queues(ctx); err == nil {
		for _, ca := range c.g.signers {
			var waiting, doubt int64
			var age float64
			for _, q := range queues {
				if strings.EqualFold(q.Issuer, ca.Name) {
					waiting, doubt, age = q.Waiting, q.Doubt, c.g.now().Sub(q.Oldest).Seconds()
				}
			}
			gauge(caWaiting, float64(waiting), ca.Name)
			gauge(caDoubt, float64(doubt), ca.Name)
			gauge(caOldest, age, ca.Name)
		}
	}
	list := c.g.caStatus.Load()
	if list == nil {
		return
	}
	for _, s := range *list {
		if !s.NotAfter.IsZero() {
			gauge(caEnds, float64(s.NotAfter.Unix()), s.Name)
		}
		if s.CRL != nil {
			until := 0.0
			if s.CRL.Error == "" {
				until = float64(s.CRL.NextUpdate.Unix())
			}
			gauge(caCRL, until, s.Name)
		}
		if s.OCSP != nil {
			up := 0.0
			if s.OCSP.Error == "" {
				up = 1
			}
			gauge(caOCSP, up, s.Name)
		}
	}
}
