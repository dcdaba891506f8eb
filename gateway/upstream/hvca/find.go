package hvca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
)

// fingerprint is the beginning of the SHA-256 of a SubjectPublicKeyInfo. It need not withstand anybody: what it finds is compared.
type fingerprint [8]byte

func fingerprintOf(spki []byte) fingerprint {
	sum := sha256.Sum256(spki)
	return fingerprint(sum[:8])
}

// How many certificates are looked at for a lost order.
const (
	perPage  = 100
	maxPages = 30
)

// Find asks for the certificate by its number, or looks for its key among those that were issued since the order was decided.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	fail := func(err error) (upstream.Result, error) {
		return upstream.Result{}, fmt.Errorf("CA %q: %w", ca.o.Name, err)
	}
	if serialPattern.MatchString(token) {
		r, err := ca.bySerial(ctx, order, token)
		if err != nil {
			return fail(err)
		}
		if r.State == 0 && ca.lost.Wait(order.ID) > 0 {
			return upstream.Result{State: upstream.Pending, Token: token}, nil
		}
		if r.State == 0 { // HVCA has given this number to the order, and does not know it
			return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("%s has given the order the serial number %s, and does not know it now: look there whether there is such a certificate", product, token)}, nil
		}
		return r, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return fail(err)
	}
	serials, all, err := ca.issued(ctx, order)
	if err != nil {
		return fail(fmt.Errorf("look for the certificate: %w", err))
	}
	for _, serial := range serials {
		same, err := ca.hasKey(ctx, serial, fingerprintOf(spki))
		if err != nil {
			return fail(fmt.Errorf("look for the certificate: %w", err))
		}
		if !same {
			continue
		}
		r, err := ca.bySerial(ctx, order, serial)
		if err != nil {
			return fail(err)
		}
		if r.State == upstream.Issued && r.Certificate.NotAfter.Unix() != order.Profile.NotAfter.Unix() {
			continue // the same key has a certificate of another order
		}
		ca.lost.Done(order.ID)
		return r, nil
	}
	if ca.lost.Wait(order.ID) > 0 { // it may still be under way, or on its way into the list
		return upstream.Result{State: upstream.Pending}, nil
	}
	what := "has not issued, as far as it says"
	if !all {
		what = "has issued too many certificates since then to say whether it has issued"
	}
	return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("the answer of CA %q was lost, and %s %s the certificate: look there for %q, valid until %s, before the order is sent again",
		ca.o.Name, product, what, order.Profile.SubjectText, order.Profile.NotAfter.UTC().Format(time.RFC3339))}, nil
}

// issued lists the serial numbers of what was issued since the order was decided, and tells whether these are all.
func (ca *CA) issued(ctx context.Context, order upstream.Order) (serials []string, all bool, err error) {
	query := url.Values{"per_page": {strconv.Itoa(perPage)}, "from": {strconv.FormatInt(order.Profile.NotBefore.Add(-time.Hour).Unix(), 10)},
		"to": {strconv.FormatInt(ca.o.Now().Add(time.Hour).Unix(), 10)}}
	for page := 1; page <= maxPages; page++ {
		query.Set("page", strconv.Itoa(page))
		a, err := ca.call(ctx, http.MethodGet, "/stats/issued?"+query.Encode(), nil)
		if err != nil {
			return nil, false, err
		}
		var list []struct {
			Serial string `json:"serial_number"`
		}
		if err := json.Unmarshal(a.Body, &list); err != nil {
			return nil, false, fmt.Errorf("the answer of %s: %w", product, err)
		}
		for _, c := range list {
			serial := strings.ToUpper(c.Serial)
			if !serialPattern.MatchString(serial) {
				return nil, false, fmt.Errorf("the answer of %s has something that is no serial number", product)
			}
			serials = append(serials, serial)
		}
		total, err := strconv.Atoi(a.Header.Get("Total-Count"))
		if err != nil {
			return nil, false, fmt.Errorf("the answer of %s does not say how many there are", product)
		}
		if len(serials) >= total || len(list) == 0 {
			return serials, len(serials) >= total, nil
		}
	}
	return serials, false, nil
}

// maxKeys bounds how many keys are remembered.
const maxKeys = 50_000

// hasKey tells whether a certificate has the key. Each is fetched once.
func (ca *CA) hasKey(ctx context.Context, serial string, key fingerprint) (bool, error) {
	ca.mu.Lock()
	known, ok := ca.keys[serial]
	ca.mu.Unlock()
	if ok {
		return known == key, nil
	}
	i, err := ca.fetch(ctx, serial)
	for range 4 { // HVCA may still work on it
		if err != nil || i == nil || i.certificate != nil {
			break
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		i, err = ca.fetch(ctx, serial)
	}
	if err != nil || i == nil || i.certificate == nil {
		return false, err
	}
	known = fingerprintOf(i.certificate.RawSubjectPublicKeyInfo)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if len(ca.keys) >= maxKeys {
		clear(ca.keys)
	}
	ca.keys[serial] = known
	return known == key, nil
}
