// Package bench measures what an enrollment costs, as ratios to the bare cryptography that it needs, taken in one run.
// make bench runs it in the lab. No test here asserts a time.
package bench

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/soap"
	"github.com/enrollgate/enrollgate/gateway/upstream"
	"github.com/enrollgate/enrollgate/gateway/upstream/stepca"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/templates"
	"github.com/enrollgate/enrollgate/test/stepca/server"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

var background = context.Background()

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs do n times in parallel and returns processor time and wall time per run.
func measure(n int, do func(i int)) (perRun, wall time.Duration) {
	runtime.GC()
	start, begin := cpu(), time.Now()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return (cpu() - start) / time.Duration(n), time.Since(begin) / time.Duration(n)
}

const runs = 400

// BenchmarkEnrollment compares enrollments through the whole journey (decode, decide, archive, ledger, issue, reply) with
// the cryptographic operations that no implementation can leave out.
func BenchmarkEnrollment(b *testing.B) {
	w := world.Start(b)
	alice := w.Client(b, "alice")
	exchange := alice.Exchange(b)
	subject, err := w.Forest.SubjectByName(background, "alice")
	if err != nil {
		b.Fatal(err)
	}
	caller := templates.Caller{Principal: "alice@LAB.TEST", SID: subject.SID, Groups: subject.Groups}
	submit := func(der []byte) {
		if _, err := w.Enroll(background, gateway.Submission{Caller: caller, CA: world.CAName, Transport: "bench", Request: der}); err != nil {
			b.Error(err)
		}
	}
	archived, plain := make([][]byte, runs), make([][]byte, runs)
	measure(runs, func(i int) {
		archived[i], _ = world.Request(b, "LabUserSMIME", exchange)
		plain[i], _ = world.Request(b, "LabUserAuth", nil)
	})
	// The operations are measured before and after, as other programs come and go.
	report := func(name string, requests [][]byte, private, public time.Duration) {
		before := operations(b, archived[0])
		perRun, wall := measure(runs, func(i int) { submit(requests[i]) })
		after := operations(b, archived[0])
		bare := (private*(before.private+after.private) + public*(before.public+after.public)) / 2
		fmt.Printf("%-22s %8.2f ms CPU  bare cryptography %6.2f ms  ratio %.2f  (%.0f/s on %d cores, with one durable ledger)\n",
			name, ms(perRun), ms(bare), float64(perRun)/float64(bare), float64(time.Second)/float64(wall), runtime.NumCPU())
		b.ReportMetric(float64(perRun)/float64(bare), name+"-ratio")
	}
	fmt.Println()
	// Archived: decrypt; verify CMC and PKCS#10; sign certificate and response.
	report("archived", archived, 3, 2)
	// Plain: verify CMC and PKCS#10; sign certificate and response.
	report("plain", plain, 2, 2)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

type cost struct{ private, public time.Duration }

// operations measures the bare RSA operations, in parallel as the enrollments are.
func operations(b *testing.B, der []byte) cost {
	r, err := wcce.ParseRequest(der)
	if err != nil {
		b.Fatal(err)
	}
	key := testpki.RSA(b, 2048)
	digest := sha256.Sum256(r.CSR.RawInfo)
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		b.Fatal(err)
	}
	var c cost
	c.private, _ = measure(runs, func(int) {
		if _, err := key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
			b.Error(err)
		}
	})
	c.public, _ = measure(runs, func(int) {
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
			b.Error(err)
		}
	})
	return c
}

// BenchmarkGetPolicies answers GetPolicies from the cache, as for callers with the same rights.
func BenchmarkGetPolicies(b *testing.B) {
	w := world.Start(b)
	subject, err := w.Forest.SubjectByName(background, "alice")
	if err != nil {
		b.Fatal(err)
	}
	caller := templates.Caller{SID: subject.SID, Groups: subject.Groups}
	for b.Loop() {
		p, err := w.Policies(background, caller, soap.GetPoliciesRequest{}, false)
		if err != nil || len(p.Encode()) == 0 {
			b.Fatal(err)
		}
	}
}

// BenchmarkClients lets 1, 16 and 64 clients enroll over HTTPS with Kerberos against a gateway in a process of its own,
// and prints what that process used. The clients share the machine with it.
func BenchmarkClients(b *testing.B) {
	w, path := world.Prepare(b, "")
	p := world.NewProcess(b, w, path)
	p.Start(b)
	alice := w.Client(b, "alice")
	exchange := alice.Exchange(b)
	for _, template := range []string{"LabUserSMIME", "LabUserAuth"} {
		for _, clients := range []int{1, 16, 64} {
			requests := make([][]byte, runs/2)
			measure(len(requests), func(i int) {
				if template == "LabUserSMIME" {
					requests[i], _ = world.Request(b, template, exchange)
				} else {
					requests[i], _ = world.Request(b, template, nil)
				}
			})
			report(b, template, p.PID(), clients, requests, func(der []byte) error {
				_, err := alice.Submit(b, der)
				return err
			})
		}
	}
}

// BenchmarkStepCAAlone lets as many clients ask a step-ca directly, for certificates of the same kind. Its CA key is P-256,
// the lab's is RSA-2048.
func BenchmarkStepCAAlone(b *testing.B) {
	s := server.Start(b, stepca.Template)
	ca, err := stepca.New(stepca.Options{Name: "Step", URL: s.Direct, Roots: []*x509.Certificate{s.Root}, Provisioner: server.Provisioner, Key: s.Key,
		Password: []byte(server.Password), Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	for _, clients := range []int{1, 16, 64} {
		requests := make([][]byte, runs/2)
		measure(len(requests), func(i int) {
			if requests[i], err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, testpki.RSA(b, 2048)); err != nil {
				b.Error(err)
			}
		})
		report(b, "step-ca alone", s.PID, clients, requests, func(der []byte) error {
			csr, err := x509.ParseCertificateRequest(der)
			if err != nil {
				return err
			}
			r, err := ca.Submit(background, upstream.Order{ID: rand.Text(), CSR: der, PublicKey: csr.PublicKey, Profile: templates.CertificateProfile{
				NotBefore: now, NotAfter: now.AddDate(1, 0, 0), Extensions: []templates.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString("User")},
					{OID: "2.5.29.17", Value: []byte{0x30, 0x10, 0x81, 0x0e, 'a', 'l', 'i', 'c', 'e', '@', 'l', 'a', 'b', '.', 't', 'e', 's', 't'}}}}})
			if err == nil && r.State != upstream.Issued {
				err = errors.New(r.Reason)
			}
			return err
		})
	}
}

// report lets clients submit the requests and prints what a process used for it.
func report(b *testing.B, name string, pid, clients int, requests [][]byte, submit func([]byte) error) {
	before, err := world.CPU(pid)
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	each(clients, requests, func(der []byte) {
		if err := submit(der); err != nil {
			b.Error(err)
		}
	})
	wall := time.Since(begin)
	after, err := world.CPU(pid)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("%-14s %2d clients  %6.0f/s  %6.2f ms CPU of the server per certificate\n", name, clients,
		float64(len(requests))/wall.Seconds(), ms(after-before)/float64(len(requests)))
}

// each lets n workers handle all requests.
func each(n int, requests [][]byte, do func([]byte)) {
	next := make(chan []byte)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for der := range next {
				do(der)
			}
		})
	}
	for _, der := range requests {
		next <- der
	}
	close(next)
	wg.Wait()
}
