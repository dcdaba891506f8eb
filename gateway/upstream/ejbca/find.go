package ejbca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// Find looks for the certificate of the order's end entity, and goes on with an order that was approved.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	user, err := ca.username(order)
	var r upstream.Result
	if err == nil {
		r, err = ca.search(ctx, order, user)
	}
	if err == nil && r.State == 0 {
		number, ok := strings.CutPrefix(token, tokenPrefix)
		id, errNumber := strconv.ParseInt(number, 10, 64)
		switch {
		case ok && errNumber == nil:
			r, err = ca.approved(ctx, order, user, id)
		case ca.o.FromRequest:
			if wait := ca.lost.Wait(order.ID); wait > 0 {
				err = fmt.Errorf("EJBCA has no certificate for the order, and the request may still be under way; certain in %s", wait.Round(time.Second))
			}
			r.State = upstream.Unknown
		default:
			r, err = ca.unsent(ctx, user)
		}
	}
	if err != nil {
		return upstream.Result{}, ca.wrap(err)
	}
	ca.lost.Done(order.ID)
	return r, nil
}

// unsent tells what becomes of an order that has no certificate: one that is sent again gets one at most, because its end entity does.
func (ca *CA) unsent(ctx context.Context, user string) (upstream.Result, error) {
	status, err := ca.entityStatus(ctx, user)
	if err != nil {
		return upstream.Result{}, err
	}
	if status == "GENERATED" {
		return upstream.Result{}, fmt.Errorf("the end entity %s has a certificate, which EJBCA does not find: its certificate profile %q has to store certificates, and the gateway's role to see them",
			user, ca.o.CertificateProfile)
	}
	return upstream.Result{State: upstream.Unknown}, nil
}

// approved goes on with an order that waits for an approval, if it has it.
func (ca *CA) approved(ctx context.Context, order upstream.Order, user string, id int64) (upstream.Result, error) {
	if !ca.o.FromRequest {
		status, err := ca.entityStatus(ctx, user)
		if err != nil {
			return upstream.Result{}, err
		}
		if status != "" && status != "WAITINGFORADDAPPROVAL" { // the approval has made it
			return ca.request(ctx, order, user)
		}
	}
	a, err := ca.post(ctx, "/v1/certificate/"+strconv.FormatInt(id, 10)+"/finalize", map[string]any{"response_format": "DER", "password": ca.password(user)})
	if err != nil {
		return upstream.Result{}, err
	}
	if a.Status == http.StatusBadRequest { // it is rejected or expired, or somebody was faster
		if r, err := ca.search(ctx, order, user); err != nil || r.State == upstream.Issued {
			return r, err
		}
	}
	return ca.answered(ctx, order, a)
}

// search looks for a certificate of the end entity with the order's key. State is 0 where there is none.
func (ca *CA) search(ctx context.Context, order upstream.Order, user string) (upstream.Result, error) {
	var answer struct {
		Certificates []certificateAnswer `json:"certificates"`
	}
	err := ca.web.JSON(ctx, product, web.Request{Path: "/v1/certificate/search"}, map[string]any{"max_number_of_results": 10, "criteria": equal(user)}, &answer, describe)
	if err != nil {
		return upstream.Result{}, unmarked(fmt.Errorf("look for the certificate: %w", err))
	}
	for _, c := range answer.Certificates {
		cert, _, err := c.read()
		if err != nil {
			return upstream.Result{}, fmt.Errorf("look for the certificate: %w", err)
		}
		if !sameKey(order, cert) {
			continue
		}
		if err := ca.chain.Check(ctx, cert, nil); err != nil {
			return upstream.Result{}, unmarked(err)
		}
		return upstream.Result{State: upstream.Issued, Certificate: cert}, nil
	}
	return upstream.Result{}, nil
}

// entityStatus asks for the status of an end entity; "" where it does not exist.
func (ca *CA) entityStatus(ctx context.Context, user string) (string, error) {
	var answer struct {
		Entities []struct {
			Username string `json:"username"`
			Status   string `json:"status"`
		} `json:"end_entities"`
	}
	err := ca.web.JSON(ctx, product, web.Request{Path: "/v1/endentity/search"}, map[string]any{"max_number_of_results": 10, "criteria": equal(user)}, &answer, describe)
	if err != nil {
		return "", unmarked(err)
	}
	for _, e := range answer.Entities {
		if e.Username == user {
			if e.Status == "" {
				return "", errors.New("EJBCA does not say the status of an end entity")
			}
			return e.Status, nil
		}
	}
	return "", nil
}

// equal are the criteria of a search for a name.
func equal(user string) []map[string]string {
	return []map[string]string{{"property": "QUERY", "value": user, "operation": "EQUAL"}}
}

// unmarked takes away that nothing was issued: that a question was not answered says nothing of the order.
func unmarked(err error) error {
	if upstream.IsNotIssued(err) {
		return unmarkedError{err}
	}
	return err
}

type unmarkedError struct{ err error }

func (e unmarkedError) Error() string { return e.err.Error() }

// Is finds out of what kind the error is, as context.DeadlineExceeded.
func (e unmarkedError) Is(target error) bool { return errors.Is(e.err, target) }

func (ca *CA) post(ctx context.Context, path string, in any) (*web.Answer, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, upstream.NotIssued(err)
	}
	return ca.web.Do(ctx, web.Request{Path: path, Type: "application/json", Accept: "application/json", Body: body})
}

// describe finds what EJBCA says in an error.
func describe(body []byte) string {
	var e struct {
		Message string `json:"error_message"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	return strings.TrimSpace(e.Message)
}
