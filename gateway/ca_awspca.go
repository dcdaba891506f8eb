package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/awspca"
	"github.com/enrollgate/enrollgate/gateway/upstream/local"
)

// openAWSPCA loads what is needed to use a CA of AWS Private CA. Without a key in the configuration it is AWS's library that finds one, and
// renews it: in its variables and files, or by the machine's role.
func (g *Gateway) openAWSPCA(c config.CA) (upstream.Issuer, error) {
	fail := func(what string, err error) (upstream.Issuer, error) {
		return nil, fmt.Errorf("CA %q: %s: %w", c.Name, what, err)
	}
	o := awspca.Options{Name: c.Name, ARN: c.AWSPCA.ARN, SigningAlgorithm: c.AWSPCA.SigningAlgorithm, Endpoint: c.AWSPCA.Endpoint, EmptyRequests: c.AWSPCA.EmptyRequests,
		ChainFile: g.chainFile(c.Name), Timeout: c.AWSPCA.Timeout, Wait: c.AWSPCA.Wait, Now: g.now}
	var err error
	if o.Roots, err = local.LoadCertificates(c.AWSPCA.Root); err != nil {
		return fail("root", err)
	}
	trusted, err := trusting(c.AWSPCA.CAFile)
	if err != nil {
		return fail("ca_file", err)
	}
	if trusted != nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = trusted
		o.Transport = transport
	}
	if c.AWSPCA.AccessKeyID != "" {
		secret, err := c.AWSPCA.SecretAccessKey.Read()
		if err != nil {
			return fail("secret_access_key", err)
		}
		defer clear(secret)
		o.Credentials = credentials.NewStaticCredentialsProvider(c.AWSPCA.AccessKeyID, string(secret), "")
		return awspca.New(o)
	}
	region := ""
	if parts := strings.Split(c.AWSPCA.ARN, ":"); len(parts) > 3 {
		region = parts[3]
	}
	found, err := awsconfig.LoadDefaultConfig(context.Background(), awsconfig.WithRegion(region))
	if err != nil {
		return fail("credentials", err)
	}
	o.Credentials = found.Credentials
	return awspca.New(o)
}
