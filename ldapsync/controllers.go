package ldapsync

import (
	"time"

	"github.com/sirupsen/logrus"
)

// controllerRecord is what is remembered of one controller's database, also across restarts.
type controllerRecord struct {
	Host       string    `json:"host"`
	USN        int64     `json:"usn"`                 // the highest highestCommittedUSN seen
	RolledBack time.Time `json:"rolledBack,omitzero"` // when it was lower than before
}

// controllers are the databases that answered so far, by invocationId. USNs only mean something within one invocationId
// ([MS-ADTS] 3.1.1.1.9): a controller restored in the supported way gets a new one. One that shows an old USN under an
// old invocationId was put back behind the directory's back, as by reverting a virtual machine. Its partners then
// miss whatever it writes, and it what they wrote.
type controllers map[string]controllerRecord

// observe records what a controller says about itself. back is true if its USN went back, the first time that is seen.
func (c controllers) observe(host, invocation string, usn int64, now time.Time) (back bool) {
	if invocation == "" {
		return false
	}
	for id, r := range c {
		if id != invocation && r.Host == host { // a new database in the place of an old one
			delete(c, id)
		}
	}
	r := c[invocation]
	if back = usn < r.USN; back {
		r.RolledBack = now
	}
	r.Host, r.USN = host, usn
	c[invocation] = r
	return back
}

// observe checks a reading's controller against what is known of it. The caller holds d.reading.
func (d *Directory) observe(r *reading) {
	known := d.controllers[r.invocation]
	if d.controllers.observe(r.controller, r.invocation, r.usn, time.Now()) {
		d.log.WithFields(logrus.Fields{"controller": r.controller, "invocation": r.invocation, "usn": r.usn, "usn_before": known.USN}).Error(
			"USN rollback on " + r.controller + ": its database was put back to an earlier state without being restored; " +
				"take it out of service and promote it anew, for it no longer replicates")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rollback = ""
	if !d.controllers[r.invocation].RolledBack.IsZero() {
		d.rollback = r.controller
	}
}
