package cases

import (
	"context"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow/people"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
)

// Key is an archived key as a manager sees it.
type Key struct {
	Record      int64     `json:"record"`
	KeyID       string    `json:"key_id"`
	Owner       string    `json:"owner"`
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial,omitempty"`
	Archived    time.Time `json:"archived"`
	Policy      string    `json:"policy"`
	Required    int       `json:"required"`
	Recipients  int       `json:"agents"` // that it is sealed to
	Certificate []byte    `json:"certificate"`
}

// Keys returns a person's archived keys that the caller may open cases about, newest first.
func (c *Cases) Keys(ctx context.Context, caller templates.Caller, owner string) ([]Key, error) {
	if owner == "" {
		return nil, hresult.New(hresult.InvalidArg, "say whose keys with owner")
	}
	mine, err := c.o.All(ctx, caller, func(r people.Role) bool { return r.Manager })
	if err != nil {
		return nil, c.refused(ctx, caller, 0, "list keys", err)
	}
	entries, err := c.o.Escrow.List(ctx, owner, maxList)
	if err != nil {
		return nil, err
	}
	out := []Key{}
	for i := range entries {
		e := &entries[i]
		cert, err := e.Certificate()
		if err != nil || mine.Open[e.Policy] == nil || e.Destroyed != nil { // without a certificate it was never issued
			continue
		}
		needed, err := c.o.Escrow.Needed(e)
		if err != nil {
			return nil, err
		}
		out = append(out, Key{e.ID, e.KeyID, e.Owner, e.Subject, e.Serial, e.Created, e.Policy, needed, len(e.Recipients), cert.Raw})
	}
	return out, nil
}
