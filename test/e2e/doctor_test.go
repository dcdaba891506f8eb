package e2e

import (
	"encoding/json"
	"testing"

	"github.com/enrollgate/enrollgate/test/world"
)

// TestDoctorFindsNothing where everything is as it should be, and a process that runs.
func TestDoctorFindsNothing(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	out, code := p.Output(t, "doctor")
	t.Log(code, "\n", out)
	var r map[string]any
	out, code = p.Output(t, "doctor", "--output", "json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
}
