package vault

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/chain"
	"github.com/enrollgate/enrollgate/gateway/upstream/web"
)

// finder remembers whose keys are in the certificates that Vault has stored, so that each is looked at once.
type finder struct {
	one sync.Mutex // held while looking: who comes second finds what the first has learned

	mu   sync.Mutex             // guards keys
	keys map[string]fingerprint // by serial number, as Vault writes it
}

// fingerprint is the beginning of the SHA-256 of a SubjectPublicKeyInfo. It need not withstand anybody: what it finds is compared.
type fingerprint [8]byte

func fingerprintOf(spki []byte) fingerprint {
	sum := sha256.Sum256(spki)
	return fingerprint(sum[:8])
}

func newFinder() *finder {
	return &finder{keys: map[string]fingerprint{}}
}

// Find looks for the order's certificate among those that Vault has stored.
func (ca *CA) Find(ctx context.Context, order upstream.Order, token string) (upstream.Result, error) {
	fail := func(err error) (upstream.Result, error) {
		return upstream.Result{}, fmt.Errorf("CA %q: look for the certificate: %w", ca.o.Name, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(order.PublicKey)
	if err != nil {
		return fail(err)
	}
	if serialPattern.MatchString(token) {
		if r, err := ca.pick(ctx, order, []string{token}); err != nil || r.State != 0 {
			return r, err
		}
	}
	ca.found.one.Lock()
	defer ca.found.one.Unlock()
	serials, err := ca.list(ctx)
	if errors.Is(err, web.ErrTooLong) {
		return upstream.Result{State: upstream.Uncertain, Reason: fmt.Sprintf("Vault has stored more certificates than it can list in one answer, so that it is not known whether it has issued "+
			"the one for this order: look among the certificates of the mount %s for %q, valid until %s", ca.o.Mount, order.Profile.SubjectText, order.Profile.NotAfter.UTC().Format(time.RFC3339))}, nil
	}
	if err == nil {
		err = ca.look(ctx, serials)
	}
	if err != nil {
		return fail(err)
	}
	var same []string
	ca.found.mu.Lock()
	for _, s := range serials {
		if ca.found.keys[s] == fingerprintOf(spki) {
			same = append(same, s)
		}
	}
	ca.found.mu.Unlock()
	r, err := ca.pick(ctx, order, same)
	if err != nil {
		return fail(err)
	}
	if r.State != 0 {
		ca.lost.Done(order.ID)
		return r, nil
	}
	if wait := ca.lost.Wait(order.ID); wait > 0 {
		return fail(fmt.Errorf("it is not there, and the request may still be under way; certain in %s", wait.Round(time.Second)))
	}
	ca.lost.Done(order.ID)
	return upstream.Result{State: upstream.Unknown}, nil
}

// pick chooses the order's certificate among those with its key. The same key may have other certificates, of other orders: what was
// decided, or at least the second when it ends, is this order's alone.
func (ca *CA) pick(ctx context.Context, order upstream.Order, serials []string) (upstream.Result, error) {
	var result upstream.Result
	for _, s := range serials {
		c, err := ca.stored(ctx, s)
		if err != nil {
			return upstream.Result{}, err
		}
		ends := order.Profile.NotAfter.UTC().Truncate(time.Second)
		if c == nil || !c.cert.NotAfter.Equal(ends) && (!c.cert.NotAfter.Before(ends) || upstream.Compare(order, c.cert, ca.o.Tolerance) != nil) {
			continue
		}
		if c.revoked {
			result = upstream.Result{State: upstream.Refused, Reason: fmt.Sprintf("the certificate %s was issued for this order, and is revoked", s)}
			continue
		}
		if err := ca.chain.Check(ctx, c.cert, nil); err != nil {
			return upstream.Result{}, err
		}
		return upstream.Result{State: upstream.Issued, Certificate: c.cert, Token: s}, nil
	}
	return result, nil
}

var serialPattern = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){0,39}$`)

// list returns the serial numbers of all stored certificates.
func (ca *CA) list(ctx context.Context) ([]string, error) {
	var answer struct {
		Keys []string `json:"keys"`
	}
	err := ca.call(ctx, http.MethodGet, "/v1/"+ca.o.Mount+"/certs?list=true", nil, &answer)
	if web.Status(err) == http.StatusNotFound { // an empty list
		return nil, nil
	}
	if web.Status(err) == http.StatusForbidden {
		err = fmt.Errorf("%w; the policy of the token needs list on %s/certs", err, ca.o.Mount)
	}
	for _, s := range answer.Keys {
		if !serialPattern.MatchString(s) {
			return nil, errors.New("the list of certificates has something that is no serial number")
		}
	}
	return answer.Keys, err
}

// workers is how many certificates are fetched at a time.
const workers = 8

// look fetches the certificates that were not looked at before. What it has learned when the context ends is kept for the next time.
func (ca *CA) look(ctx context.Context, serials []string) error {
	var todo []string
	known := map[string]fingerprint{}
	ca.found.mu.Lock()
	for _, s := range serials {
		if k, ok := ca.found.keys[s]; ok {
			known[s] = k
		} else {
			todo = append(todo, s)
		}
	}
	ca.found.keys = known // without those that are no longer stored
	ca.found.mu.Unlock()
	var all sync.WaitGroup
	errs := make([]error, workers)
	for i := range workers {
		all.Go(func() {
			for j := i; j < len(todo) && errs[i] == nil; j += workers {
				c, err := ca.stored(ctx, todo[j])
				if errs[i] = err; c == nil {
					continue
				}
				ca.found.mu.Lock()
				ca.found.keys[todo[j]] = fingerprintOf(c.cert.RawSubjectPublicKeyInfo)
				ca.found.mu.Unlock()
			}
		})
	}
	all.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		ca.found.mu.Lock()
		defer ca.found.mu.Unlock()
		return fmt.Errorf("%d of %d stored certificates are looked at: %w", len(ca.found.keys), len(serials), errs[i])
	}
	return nil
}

type storedCertificate struct {
	cert    *x509.Certificate
	revoked bool
}

// stored fetches a certificate; nil where there is none.
func (ca *CA) stored(ctx context.Context, serial string) (*storedCertificate, error) {
	var answer struct {
		Certificate string `json:"certificate"`
		Revoked     int64  `json:"revocation_time"`
	}
	err := ca.call(ctx, http.MethodGet, "/v1/"+ca.o.Mount+"/cert/"+strings.ReplaceAll(serial, ":", "-"), nil, &answer)
	if web.Status(err) == http.StatusNotFound || err == nil && answer.Certificate == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	cert, err := chain.One([]byte(answer.Certificate))
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", serial, err)
	}
	number, ok := new(big.Int).SetString(strings.ReplaceAll(serial, ":", ""), 16)
	if !ok || cert.SerialNumber.Cmp(number) != 0 {
		return nil, fmt.Errorf("certificate %s: the answer has another serial number", serial)
	}
	return &storedCertificate{cert, answer.Revoked != 0}, nil
}
