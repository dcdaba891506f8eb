package ejbca

import (
	"encoding/base64"
	"testing"
)

func FuzzDecodeCertificate(f *testing.F) {
	for _, s := range []string{"", "MAA=", "TUFBPQ==", "***", "MIIB"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, s := range []string{string(text), base64.StdEncoding.EncodeToString(text), base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(text)))} {
			if c, err := decodeCertificate(s); (err == nil) != (c != nil) {
				t.Errorf("%v, %v", c, err)
			}
		}
		if list, err := parseBundle(text); err == nil && len(list) == 0 {
			t.Error("no certificate and no error")
		}
	})
}
