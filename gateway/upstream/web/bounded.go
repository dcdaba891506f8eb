package web

import (
	"fmt"
	"io"
	"net/http"
)

// Bounded lets a library, which does not bound them itself, read no more than most octets of an answer.
func Bounded(next http.RoundTripper, most int) http.RoundTripper { return &bounded{next, most} }

type bounded struct {
	next http.RoundTripper
	most int
}

func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(r)
	if err == nil {
		res.Body = &boundedBody{ReadCloser: res.Body, left: b.most, most: b.most}
	}
	return res, err
}

type boundedBody struct {
	io.ReadCloser
	left, most int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer has more than %d octets", b.most)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// DoesNotKnow tells whether an error is an answer of a server that cannot do what it was asked about a message that it may not know any
// more; any other failure may be over the next time.
func DoesNotKnow(err error) bool {
	switch Status(err) {
	case http.StatusBadRequest, http.StatusConflict, http.StatusGone, http.StatusUnprocessableEntity, http.StatusInternalServerError, http.StatusNotImplemented:
		return true
	}
	return false
}
