package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/test/world"
	"github.com/sirupsen/logrus"
)

func TestWhatPrometheusAndTheLogSayOfAnIssuedAndARefusedRequest(t *testing.T) {
	metrics := world.Env("LAB_GW_IP") + ":9464"
	w := world.StartChanged(t, "", func(c *config.Config) {
		c.Listen.Metrics, c.Log.Level, c.Log.Format = metrics, "info", "json"
	})
	var log bytes.Buffer
	w.LogTo(&log)
	w.Log.SetLevel(logrus.InfoLevel)
	alice, bob := w.Client(t, "alice"), w.Client(t, "bob")
	exchange := alice.Exchange(t)
	issued, err := alice.Submit(t, first(world.Request(t, "LabUserSMIME", exchange)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = bob.Submit(t, first(world.Request(t, "LabUserSMIME", exchange)))
	wantFault(t, err, hresult.TemplateDenied)
	fault, ok := errors.AsType[*soap.RequestError](err)
	if !ok || fault.RequestID == "" {
		t.Fatalf("the fault names no request: %v", err)
	}

	resp, err := w.HTTP().Get("http://" + metrics + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	refused := hresult.TemplateDenied.Name()
	for _, line := range []string{
		`enrollgate_requests_total{outcome="issued"} 1`,
		`enrollgate_requests_total{outcome="` + refused + `"} 1`,
		`enrollgate_request_duration_seconds_count 2`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="decode"} 2`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="decide"} 1`,
		`enrollgate_step_duration_seconds_count{outcome="` + refused + `",step="decide"} 1`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="archive"} 1`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="record"} 1`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="issue"} 1`,
		`enrollgate_step_duration_seconds_count{outcome="ok",step="close"} 1`,
		`enrollgate_archival_ready 1`,
		`enrollgate_agents_valid{policy="default"} 1`,
		`enrollgate_agents_minimum{policy="default"} 1`,
		`enrollgate_records_below_quorum{policy="default"} 0`,
	} {
		if !regexp.MustCompile("(?m)^" + regexp.QuoteMeta(line) + "$").Match(text) {
			t.Errorf("no line %s", line)
		}
	}

	lines := map[string]int{} // log lines by the request that they are about
	for line := range strings.Lines(w.LogText(&log)) {
		var entry struct {
			Request int64  `json:"request"`
			Caller  string `json:"caller"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("not JSON: %s", line)
		}
		if entry.Caller != "" {
			lines[strconv.FormatInt(entry.Request, 10)]++
		}
	}
	if len(lines) != 2 || lines[issued.RequestID] != 1 || lines[fault.RequestID] != 1 {
		t.Errorf("log lines by request: %v; the requests are %s and %s", lines, issued.RequestID, fault.RequestID)
	}
}
