package doctor

import (
	"errors"
	"slices"
	"testing"

	"github.com/enrollgate/enrollgate/gateway/config"
)

func TestNamesThatDCOMClientsAreTold(t *testing.T) {
	own := func(a string) bool { return a == "10.0.0.1" }
	for name, c := range map[string]struct {
		addresses []string
		err       error
		want      Outcome
	}{
		"one":        {[]string{"10.0.0.1"}, nil, OK},
		"two":        {[]string{"10.0.0.1", "10.0.0.2"}, nil, Attention},
		"translated": {[]string{"10.0.0.2"}, nil, Unknown},
		"none":       {nil, errors.New("no such host"), Unknown},
	} {
		if f := judgeDCOMName("enroll", c.addresses, c.err, own); f.Outcome != c.want || f.Reason == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	cfg := &config.Config{PublicName: "enroll.corp.example", Listen: config.Listen{RPC: ":49200", EPM: ":135"}}
	if got := dcomNames(cfg); !slices.Equal(got, []string{"enroll.corp.example", "enroll"}) {
		t.Error(got)
	}
	for _, l := range []config.Listen{{RPC: "off", EPM: "off"}, {RPC: ":49200", EPM: "off"}, {}} {
		if cfg.Listen = l; dcomNames(cfg) != nil || dcomFindings(t.Context(), cfg) != nil {
			t.Errorf("%+v", l)
		}
	}
	cfg.PublicName, cfg.Listen = "localhost", config.Listen{RPC: ":49200", EPM: ":135"}
	if got := dcomFindings(t.Context(), cfg); len(got) != 1 || got[0].Outcome != OK {
		t.Errorf("%+v", got)
	}
}
