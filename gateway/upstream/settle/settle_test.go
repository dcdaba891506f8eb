package settle_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream/settle"
)

func TestAnOrderSettles(t *testing.T) {
	now := time.Unix(1000, 0)
	o := settle.New(0, func() time.Time { return now })
	if got := o.Wait("stranger"); got != settle.Default {
		t.Errorf("an order of another instance waits %s", got)
	}
	now = now.Add(time.Minute)
	o.Lost("late")
	now = now.Add(settle.Default - time.Minute)
	if o.Wait("stranger") > 0 || o.Wait("late") != time.Minute {
		t.Errorf("%s, %s", o.Wait("stranger"), o.Wait("late"))
	}
	o.Done("late")
	for i := range 20_000 {
		o.Lost(strconv.Itoa(i))
	}
	if got := o.Wait("stranger"); got != settle.Default {
		t.Errorf("a forgotten order waits %s", got)
	}
}
