package ldapsync

import (
	"slices"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/security"
)

// subjectCache remembers accounts for a short time.
type subjectCache struct {
	ttl  time.Duration
	size int

	mu      sync.Mutex
	entries map[security.SID]cachedSubject
	order   []cachedKey // in the order of expiry, which is that of insertion
}

type cachedSubject struct {
	subject templates.Subject
	expires time.Time
}

type cachedKey struct {
	sid     security.SID
	expires time.Time
}

func newSubjectCache(ttl time.Duration, size int) *subjectCache {
	return &subjectCache{ttl: ttl, size: size, entries: map[security.SID]cachedSubject{}}
}

func (c *subjectCache) get(sid security.SID, now time.Time) (templates.Subject, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[sid]
	if !ok || !now.Before(e.expires) {
		return templates.Subject{}, false
	}
	return e.subject, true
}

func (c *subjectCache) put(sid security.SID, s templates.Subject, now time.Time) {
	if c.ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	expires := now.Add(c.ttl)
	c.entries[sid] = cachedSubject{s, expires}
	c.order = append(c.order, cachedKey{sid, expires})
	drop := 0
	for _, k := range c.order {
		if now.Before(k.expires) && len(c.order)-drop <= c.size {
			break
		}
		if c.entries[k.sid].expires.Equal(k.expires) { // else a newer answer is there
			delete(c.entries, k.sid)
		}
		drop++
	}
	c.order = slices.Delete(c.order, 0, drop)
}
