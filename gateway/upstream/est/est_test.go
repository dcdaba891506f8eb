package est

import (
	"encoding/base64"
	"net/http"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{"": time.Minute, "0": 0, "30": 30 * time.Second, "-1": time.Minute, "999999999": 24 * time.Hour, "soon": time.Minute,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Thu, 01 Jan 2026 00:00:00 GMT": 0, "Fri, 02 Jan 2099 03:05:05 GMT": 24 * time.Hour} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

func FuzzParseCertsOnly(f *testing.F) {
	f.Add([]byte("MCMGCSqGSIb3DQEHAqAWMBQCAQExADALBgkqhkiG9w0BBwGgADEA"))
	f.Add([]byte("MA\r\nA="))
	f.Add([]byte("***"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if certs, err := ParseCertsOnly(body); (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
		// The same DER, which the fuzzer can change bit by bit.
		if certs, err := ParseCertsOnly([]byte(base64.StdEncoding.EncodeToString(body))); (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
	})
}
