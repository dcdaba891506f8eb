package certadmin

import (
	"context"
	"sync"
	"time"

	icertadmind "github.com/oiweiwei/go-msrpc/msrpc/dcom/csra/icertadmind/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/gateway/rpc/request"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
	"github.com/enrollgate/enrollgate/templates/security"
)

// Limits of views. A view has no rows in memory, only what it is restricted to and where it is.
const (
	maxRestrictions = 32
	maxColumns      = 128
	viewsPerCaller  = 16 // where there are more, the one goes that was not used for longest
	viewsInAll      = 4096
	viewTime        = 15 * time.Minute // without being used
	pageRows        = 256
	pageOctets      = 1 << 20
)

// viewKey is whose a view is: each object of a caller has one ([MS-CSRA] 3.1.1.6).
type viewKey struct {
	sid    security.SID
	object pdu.UUID
}

// view is what a caller looks at. Its rows are those that there were when it was opened; each page has them as they are now.
type view struct {
	mu      sync.Mutex // one page at a time
	query   Query
	columns []*column
	base    uint32 // number of the first row, as the client counts

	position int   // rows before the place where the last page ended
	after    int64 // the last row of it; 0 at the beginning

	used time.Time // guarded by views.mu
}

// views are those that are open.
type views struct {
	now  func() time.Time
	mu   sync.Mutex // guards open
	open map[viewKey]*view
}

func newViews(now func() time.Time) *views { return &views{now: now, open: map[viewKey]*view{}} }

// add opens a view. Of a caller who opens too many, the one ends that was not used for longest: he may have gone without closing them.
func (v *views) add(key viewKey, n *view) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	var oldest viewKey
	count := 0
	for k, open := range v.open {
		if now.Sub(open.used) >= viewTime {
			delete(v.open, k)
			continue
		}
		if k.sid != key.sid {
			continue
		}
		if count++; count == 1 || open.used.Before(v.open[oldest].used) {
			oldest = k
		}
	}
	if v.open[key] != nil {
		return hresult.New(hresult.Unexpected, "the object has a view already: close it first")
	}
	if count >= viewsPerCaller {
		delete(v.open, oldest)
	}
	if len(v.open) >= viewsInAll {
		return hresult.New(hresult.ServerTooBusy, "there are too many open views; try again later")
	}
	n.used = now
	v.open[key] = n
	return nil
}

func (v *views) get(key viewKey) (*view, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found, now := v.open[key], v.now()
	if found == nil || now.Sub(found.used) >= viewTime {
		delete(v.open, key)
		return nil, hresult.New(hresult.InvalidHandle, "no view is open")
	}
	found.used = now
	return found, nil
}

func (v *views) remove(key viewKey) error {
	if _, err := v.get(key); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.open, key)
	return nil
}

func keyOf(call *server.Call) viewKey { return viewKey{call.Caller.SID, call.Object} }

// openView is [MS-CSRA] 3.1.4.1.12.
func (a *Admin) openView(ctx context.Context, call *server.Call, in *icertadmind.OpenViewRequest) (*icertadmind.OpenViewResponse, error) {
	n, rows, err := a.open(ctx, call, in)
	return &icertadmind.OpenViewResponse{Fetched: n, ResultRows: blob(rows), Return: request.Failed(call, err)}, nil
}

func (a *Admin) open(ctx context.Context, call *server.Call, in *icertadmind.OpenViewRequest) (uint32, []byte, error) {
	ca, err := a.manager(ctx, call, in.Authority)
	if err != nil {
		return 0, nil, err
	}
	v := &view{query: Query{CA: ca}}
	for _, id := range in.ColumnsOut {
		c := columnOf(id)
		if c == nil {
			return 0, nil, hresult.New(hresult.InvalidArg, "the requests have no column 0x%x", id)
		}
		v.columns = append(v.columns, c)
	}
	if v.query.Last, err = a.backend.Last(ctx); err != nil {
		return 0, nil, err
	}
	v.query.Last = min(v.query.Last, 1<<32-1) // with 32 bits others would have the number of another request
	if err := a.restrict(ctx, &v.query, in.CertViewRestrictions); err != nil {
		return 0, nil, err
	}
	// Whether clients count rows from 0 or from 1 is written nowhere; they open a view at its first row.
	if in.ID <= 1 {
		v.base = in.ID
	}
	if err := a.views.add(keyOf(call), v); err != nil {
		return 0, nil, err
	}
	n, rows, err := a.page(ctx, v, in.ID, in.Count)
	if err != nil { // the client takes the view for not open
		_ = a.views.remove(keyOf(call))
	}
	return n, rows, err
}

// enumView is [MS-CSRA] 3.1.4.1.13.
func (a *Admin) enumView(ctx context.Context, call *server.Call, in *icertadmind.EnumViewRequest) (*icertadmind.EnumViewResponse, error) {
	_, err := a.manager(ctx, call, in.Authority)
	var n uint32
	var rows []byte
	var v *view
	if err == nil {
		v, err = a.views.get(keyOf(call))
	}
	if err == nil {
		n, rows, err = a.page(ctx, v, in.ID, in.Count)
	}
	return &icertadmind.EnumViewResponse{Fetched: n, ResultRows: blob(rows), Return: request.Failed(call, err)}, nil
}

// closeView is [MS-CSRA] 3.1.4.1.14.
func (a *Admin) closeView(ctx context.Context, call *server.Call, in *icertadmind.CloseViewRequest) (*icertadmind.CloseViewResponse, error) {
	_, err := a.manager(ctx, call, in.Authority)
	if err == nil {
		err = a.views.remove(keyOf(call))
	}
	return &icertadmind.CloseViewResponse{Return: request.Failed(call, err)}, nil
}

// page reads rows from the place that the client names. Reading on from where the last page ended costs nothing; other places are counted
// off from the beginning. It has fewer rows than are asked for where they would be too large.
func (a *Admin) page(ctx context.Context, v *view, first, count uint32) (uint32, []byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if first < v.base {
		return 0, nil, hresult.New(hresult.InvalidArg, "the view begins with row %d, not %d", v.base, first)
	}
	position, q := int(first-v.base), v.query
	q.Limit = int(min(count, pageRows)) + 1 // one more tells whether this is the end
	if position != v.position {
		v.position, v.after, q.Skip = position, 0, position
	} else if v.after != 0 && q.Descending {
		q.Last = v.after - 1
	} else if v.after != 0 {
		q.First = v.after + 1
	}
	var rows []*Row
	if !q.Nobody {
		var err error
		if rows, err = a.backend.Rows(ctx, q); err != nil {
			return 0, nil, err
		}
	}
	var out []byte
	n := 0
	for n < len(rows) && n < q.Limit-1 {
		row := encodeRow(rows[n], v.columns)
		if n > 0 && len(out)+len(row) > pageOctets {
			break
		}
		out = append(out, row...)
		v.after = rows[n].ID
		n++
	}
	v.position += n
	if n == len(rows) {
		out = append(out, encodeEnd(v.position)...)
	}
	return uint32(n), out, nil //nolint:gosec // at most pageRows
}
