package config_test

import (
	"strings"
	"testing"
)

func TestAWSPCA(t *testing.T) {
	good := `driver: aws-pca, aws_pca: {arn: "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/x", root: r.pem, access_key_id: A, secret_access_key: {env: B}}`
	if _, err := load(t, foreignCA(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"another ARN":      {strings.Replace(good, "certificate-authority", "certificate", 1), "cas[0].aws_pca.arn"},
		"no root":          {strings.Replace(good, "root: r.pem, ", "", 1), "cas[0].aws_pca.root"},
		"half a key":       {strings.Replace(good, "access_key_id: A, ", "", 1), "go together"},
		"plain HTTP":       {strings.Replace(good, "root:", `endpoint: "http://x", root:`, 1), "cas[0].aws_pca.endpoint"},
		"its own identity": {"identity: ca, " + good, "does not hold"},
	} {
		if _, err := load(t, foreignCA(bad.text)); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
