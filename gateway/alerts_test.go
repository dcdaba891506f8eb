package gateway

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/enrollgate/enrollgate/test/inlab"
	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
)

const alerts = "../configs/alerts.yaml"

// exported are the names of the gateway's metrics.
func exported() map[string]bool {
	m := newMetrics()
	m.watch(&Gateway{})
	descriptions := make(chan *prometheus.Desc)
	go func() { m.registry.Describe(descriptions); close(descriptions) }()
	out := map[string]bool{}
	for d := range descriptions {
		out[regexp.MustCompile(`fqName: "([^"]*)"`).FindStringSubmatch(d.String())[1]] = true
	}
	return out
}

func TestEachMetricThatAnAlertNamesIsExported(t *testing.T) {
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	names, rules := exported(), 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules++
			found := regexp.MustCompile(`enrollgate_\w+`).FindAllString(r.Expr, -1)
			if len(found) == 0 || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("%s: it names no metric, or says not what to do", r.Alert)
			}
			for _, name := range found {
				name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
				if !names[name] {
					t.Errorf("%s: there is no metric %s", r.Alert, name)
				}
			}
		}
	}
	if rules < 5 {
		t.Errorf("%d rules", rules)
	}
}

func TestPromtoolReadsTheAlerts(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		inlab.Missing(t, "promtool, of the Debian package prometheus")
	}
	if out, err := exec.Command(promtool, "check", "rules", alerts).CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCESS") {
		t.Errorf("%v\n%s", err, out)
	}
}
