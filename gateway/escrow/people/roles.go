// Package people is what recovery cases and batches have in common: what somebody may do about the keys of a recovery policy, the
// line in the audit log about an attempt that was refused, and JSON over HTTPS with Kerberos tickets (Server and Client).
package people

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/templates/dn"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Role is what somebody may do about keys of a policy.
type Role struct{ Manager, Approver bool }

// Roles tells them. All fields are needed.
type Roles struct {
	DB     *store.DB
	Escrow *escrow.Escrow
	Now    func() time.Time
	// IsOneOf tells whether the caller is one of the accounts, or in one of the groups.
	IsOneOf func(ctx context.Context, caller templates.Caller, names []string) (bool, error)
	// Account finds an account by name.
	Account func(ctx context.Context, name string) (templates.Subject, error)
	// HolderOf is the account that an agent's certificate was issued to; "" where another CA did.
	HolderOf func(ctx context.Context, cert *x509.Certificate) (security.SID, error)
}

// Holds requires that an agent's certificate was issued to nobody but the caller.
func (r *Roles) Holds(ctx context.Context, caller templates.Caller, agent *x509.Certificate) error {
	holder, err := r.HolderOf(ctx, agent)
	if err == nil && holder != "" && holder != caller.SID {
		err = hresult.New(hresult.AccessDenied, "the certificate of %s was issued to another account", dn.Show(agent.RawSubject))
	}
	return err
}

// Of is the caller's role about a policy. A policy that is not configured is AccessDenied.
func (r *Roles) Of(ctx context.Context, caller templates.Caller, policy string) (role Role, p *escrow.Policy, err error) {
	if p, err = r.Escrow.Policy(policy); err != nil {
		return role, nil, hresult.New(hresult.AccessDenied, "%v", err)
	}
	if role.Manager, err = r.IsOneOf(ctx, caller, p.Managers); err == nil {
		role.Approver, err = r.IsOneOf(ctx, caller, p.Approvers)
	}
	if e, ok := errors.AsType[*hresult.Error](err); ok {
		err = hresult.Wrap(e.Code, err, "recovery policy %q: %s", policy, e.Text).WithFix("%s", e.Fix)
	}
	if err != nil {
		return Role{}, nil, err
	}
	return role, p, nil
}

// ErrNone is the refusal of somebody without a role.
var ErrNone = hresult.New(hresult.AccessDenied, "you are neither a manager nor an approver of the recovery policy").
	WithFix("managers and approvers are named under escrow.policies in the gateway's configuration")

// Policies are those of which the caller has a role that is asked for, and, by name, those that nobody has a role of now and why: a
// mistyped group in one policy closes that one, and no other.
type Policies struct {
	Open     map[string]*escrow.Policy
	Unusable map[string]error
}

// All finds the policies of which the caller has a role that has accepts. Where there is none it is ErrNone, or ServerUnavailable
// where policies cannot be used.
func (r *Roles) All(ctx context.Context, caller templates.Caller, accepts func(Role) bool) (*Policies, error) {
	out := &Policies{map[string]*escrow.Policy{}, map[string]error{}}
	for _, p := range r.Escrow.Policies() {
		role, found, err := r.Of(ctx, caller, p.Name)
		if err != nil {
			// What is wrong with the caller, or with the whole directory, is not the policy's fault.
			if e, ok := errors.AsType[*hresult.Error](err); !ok || e.Code != hresult.ServerUnavailable || ctx.Err() != nil {
				return nil, err
			}
			out.Unusable[p.Name] = err
		} else if accepts(role) {
			out.Open[p.Name] = found
		}
	}
	if len(out.Open) > 0 {
		return out, nil
	}
	if len(out.Unusable) > 0 {
		names := strings.Join(slices.Sorted(maps.Keys(out.Unusable)), ", ")
		cause := errors.Join(slices.Collect(maps.Values(out.Unusable))...)
		return out, hresult.Wrap(hresult.ServerUnavailable, cause, "you have no role in the recovery policies that can be used, and these cannot: %s", names).
			WithFix("the gateway's log says why; most often a manager or approver under escrow.policies is mistyped")
	}
	return out, ErrNone
}

// Refused writes the refusal of an attempt into the audit log and returns its reason. Other errors are returned as they are.
func (r *Roles) Refused(ctx context.Context, caller templates.Caller, attempt string, detail map[string]any, err error) error {
	e, ok := errors.AsType[*hresult.Error](err)
	if !ok || e.Code == hresult.ServerUnavailable {
		return err
	}
	line := map[string]any{"attempt": attempt, "sid": caller.SID, "refused": e.Text}
	maps.Copy(line, detail)
	if logErr := r.DB.Write(ctx, func(tx *sql.Tx) error {
		return audit.Append(tx, r.Now(), caller.Principal, audit.RecoveryRefused, line)
	}); logErr != nil {
		return fmt.Errorf("%w; and it could not be logged: %w", err, logErr)
	}
	return err
}
