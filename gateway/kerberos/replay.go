package kerberos

import (
	"crypto/sha256"
	"sync"
	"time"
)

// replayCache remembers the authenticators of the recent past, so that none is accepted twice (RFC 4120 3.2.3). The
// key is a hash of the encrypted authenticator: it holds a random confounder, so that two requests of one client in
// the same microsecond differ, and nobody without the session key can make a second encryption of the same one.
//
// It is this process's own: behind a load balancer each instance has one, and TLS is what keeps tokens from being seen.
type replayCache struct {
	keep time.Duration

	mu sync.Mutex // guards what follows
	// Two generations: entries move from young to old, and old is dropped whole, so that no request pays for a sweep.
	young, old map[[sha256.Size]byte]struct{}
	turned     time.Time // when young was begun
}

func newReplayCache(keep time.Duration) *replayCache {
	return &replayCache{keep: keep, young: map[[sha256.Size]byte]struct{}{}}
}

// seen tells whether the authenticator was presented before, and remembers it for at least the time to keep.
func (c *replayCache) seen(authenticator []byte, now time.Time) bool {
	key := sha256.Sum256(authenticator)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.turned.IsZero() {
		c.turned = now
	}
	if age := now.Sub(c.turned); age > c.keep {
		if c.old = c.young; age > 2*c.keep {
			c.old = nil
		}
		c.young = map[[sha256.Size]byte]struct{}{}
		c.turned = now
	}
	if _, ok := c.young[key]; ok {
		return true
	}
	if _, ok := c.old[key]; ok {
		return true
	}
	c.young[key] = struct{}{}
	return false
}
