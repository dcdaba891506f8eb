package bench

import (
	"crypto/x509"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/config"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/upstreams/acme"
	"github.com/enrollgate/enrollgate/test/upstreams/cmp"
	"github.com/enrollgate/enrollgate/test/upstreams/est"
	"github.com/enrollgate/enrollgate/test/upstreams/scep"
	"github.com/enrollgate/enrollgate/test/upstreams/vault/engine"
	"github.com/enrollgate/enrollgate/test/world"
)

// drivers are the CAs that run here, as they are put in the place of the embedded CA. Those that take names from the request alone
// get requests that say what is decided, from templates that are like their own profiles.
var drivers = []struct {
	name, account, template string
	start                   func(b *testing.B, c *config.CA)
	like                    map[string]string // what differs from LabMachine
	orders                  int
}{
	{"embedded", "alice", "LabUserAuth", func(*testing.B, *config.CA) {}, nil, 150},
	{"step-ca", "alice", "LabUserAuth", throughStepCA, nil, 150},
	{"Vault", "WS1$", "LabMachine", throughVault, nil, 150},
	{"EST", "WS1$", "BenchEST", throughEST, map[string]string{}, 150},
	{"SCEP", "WS1$", "BenchSCEP", throughSCEP, map[string]string{"pkiextendedkeyusage": clientAuth, "mspki-certificate-application-policy": clientAuth, "pkikeyusage": "\x80"}, 150},
	{"ACME", "WS1$", "BenchACME", throughACME, map[string]string{"pkiextendedkeyusage": serverAuth, "mspki-certificate-application-policy": serverAuth, "pkikeyusage": "\x80"}, 60},
	{"CMP", "alice", "LabUserAuth", throughCMP, nil, 40},
}

const clientAuth, serverAuth = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"

// windows are the extensions of Windows that CAs which do not know them leave out.
var windows = []string{wcce.OIDTemplateName, wcce.OIDTemplateInfo, wcce.OIDAppPolicies, wcce.OIDSID}

func throughEST(b *testing.B, c *config.CA) {
	c.Driver, c.Local, c.EST = "est", config.LocalCA{}, est.Start(b).Config(b)
}

func throughSCEP(b *testing.B, c *config.CA) {
	c.Driver, c.Local, c.SCEP = "scep", config.LocalCA{}, scep.Start(b).Config(b)
	c.SCEP.Ignore, c.Tolerate.Missing = windows, windows
}

func throughACME(b *testing.B, c *config.CA) {
	c.Driver, c.Local, c.ACME = "acme", config.LocalCA{}, acme.Start(b).Config(b, "ws1.lab.test")
	c.ACME.Ignore, c.Tolerate.Missing = windows, windows
}

func throughCMP(b *testing.B, c *config.CA) {
	c.Driver, c.Local, c.CMP = "cmp", config.LocalCA{}, cmp.Start(b).Config(b)
}

// throughVault issues through a role for computers of Vault's own PKI engine.
func throughVault(b *testing.B, c *config.CA) {
	e := engine.Start(b)
	e.Role(map[string]any{"server_flag": true, "client_flag": true, "email_protection_flag": false, "key_usage": "DigitalSignature,KeyEncipherment", "organization": "", "max_ttl": "17520h"})
	token := filepath.Join(b.TempDir(), "token")
	if err := os.WriteFile(token, []byte("root\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	c.Driver, c.Local = "vault", config.LocalCA{}
	c.Tolerate.Missing = windows
	c.Vault = config.Vault{Connection: config.Connection{URL: e.Proxy.URL, Root: testpki.PEM(b, "CERTIFICATE", e.Root.Raw), CAFile: testpki.PEM(b, "CERTIFICATE", e.TLS.Root.Raw)},
		Namespace: engine.Namespace, Role: "mail", Token: config.Secret{File: token}}
}

func throughStepCA(b *testing.B, c *config.CA) {
	s := server.Start(b, stepca.Template)
	dir := b.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	c.Driver, c.Local = "step-ca", config.LocalCA{}
	c.StepCA = config.StepCA{URL: s.Direct, Root: s.RootFile, Provisioner: server.Provisioner, Key: write("key.jwk", s.Key), Password: config.Secret{File: write("password", []byte(server.Password))}}
}

// BenchmarkDrivers compares an enrollment, from the decoded message to the signed reply, with asking the CA alone through the same
// driver. Added is what is decided, recorded, checked and signed around it, as a part of what the CA takes alone. The embedded CA, which
// leaves keeping to the ledger, keeps what it issues alone, as every other CA does.
func BenchmarkDrivers(b *testing.B) {
	fmt.Printf("\n%-12s %14s %16s %8s %12s %14s %16s\n", "CA", "CA alone, ms", "enrollment, ms", "added", "16 at once/s", "CA alone/s", "CPU here, ms")
	for n, d := range drivers {
		b.Run(d.name, func(b *testing.B) {
			w := world.StartChanged(b, "", func(c *config.Config) { d.start(b, &c.CAs[0]) })
			if d.like != nil {
				d.like["mspki-cert-template-oid"] = "1.3.6.1.4.1.311.21.8.4711." + strconv.Itoa(n)
				w.CopyTemplate(b, "LabMachine", d.template, d.like)
			}
			e, err := w.Explain(background, d.account, d.template, "")
			if err != nil {
				b.Fatal(err)
			}
			requests := make([][]byte, 2*d.orders)
			measure(len(requests), func(i int) {
				if d.like == nil {
					requests[i], _ = world.Request(b, d.template, nil)
				} else if requests[i], err = upstream.NewCSR(e.Profile, testpki.RSA(b, 2048)); err != nil {
					b.Error(err)
				}
			})
			enroll, alone := enrolling(b, w, d.account, d.template), asking(b, w.Signer(world.CAName).Issuer, e.Profile, d.name == "embedded")
			one, other := medians(d.orders, func(i int) { alone(requests[i]) }, func(i int) { enroll(requests[i]) })
			perRun, wall := measure(d.orders, func(i int) { enroll(requests[d.orders+i]) })
			_, bare := measure(d.orders, func(i int) { alone(requests[d.orders+i]) })
			added := float64(other-one) / float64(one)
			fmt.Printf("%-12s %14.2f %16.2f %8.2f %12.0f %14.0f %16.2f\n", d.name, ms(one), ms(other), added, float64(time.Second)/float64(wall),
				float64(time.Second)/float64(bare), ms(perRun))
			b.ReportMetric(added, "added")
		})
	}
}

// enrolling enrolls for an account by a template.
func enrolling(b *testing.B, w *world.World, account, template string) func(der []byte) {
	subject, err := w.Forest.SubjectByName(background, account)
	if err != nil {
		b.Fatal(err)
	}
	caller := templates.Caller{Principal: account + "@LAB.TEST", Realm: "LAB.TEST", SID: subject.SID, Groups: subject.Groups, Machine: subject.Machine}
	return func(der []byte) {
		reply, err := w.Enroll(background, gateway.Submission{Caller: caller, CA: world.CAName, Transport: "bench", Request: der,
			Attributes: []wcce.NameValue{{Name: "CertificateTemplate", Value: template}}})
		if err != nil || reply.Certificate == nil {
			b.Errorf("%+v, %v", reply, err)
		}
	}
}

// asking orders certificates of a CA, and keeps them durably where it does not itself.
func asking(b *testing.B, issuer upstream.Issuer, profile templates.CertificateProfile, keep bool) func(der []byte) {
	db := testpki.DB(b)
	insert := func(c *x509.Certificate) error {
		return db.Write(background, func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT INTO issued VALUES (?, ?)", c.SerialNumber.Text(16), c.Raw)
			return err
		})
	}
	if err := db.Write(background, func(tx *sql.Tx) error {
		_, err := tx.Exec("CREATE TABLE issued (serial TEXT, certificate BLOB)")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	var number atomic.Int64
	return func(der []byte) {
		request, err := wcce.ParseRequest(der)
		if err != nil {
			b.Error(err)
			return
		}
		r, err := issuer.Submit(background, upstream.Order{ID: fmt.Sprint("alone ", number.Add(1)), CSR: request.CSR.Raw, PublicKey: request.CSR.PublicKey, Profile: profile})
		if err != nil || r.State != upstream.Issued {
			b.Errorf("%+v, %v", r, err)
		} else if keep {
			if err := insert(r.Certificate); err != nil {
				b.Error(err)
			}
		}
	}
}

// medians does two things in turn, one at a time, and returns the median time of each.
func medians(n int, one, other func(i int)) (time.Duration, time.Duration) {
	var a, b []time.Duration
	for i := range n {
		begin := time.Now()
		one(i)
		middle := time.Now()
		other(i)
		a, b = append(a, middle.Sub(begin)), append(b, time.Since(middle))
	}
	slices.Sort(a)
	slices.Sort(b)
	return a[n/2], b[n/2]
}
