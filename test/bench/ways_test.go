package bench

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	dcomwcce "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"
	icertpassage "github.com/oiweiwei/go-msrpc/msrpc/icpr/icertpassage/v0"
	"github.com/oiweiwei/go-msrpc/ssp/gssapi"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/msrpc"
	"github.com/enrollgate/enrollgate/test/testpki"
	"github.com/enrollgate/enrollgate/test/world"
)

// way is one protocol that clients enroll by.
type way struct {
	name string
	n    int                                       // requests in a round
	open func(b *testing.B) func(der []byte) error // a client of its own, with a connection
}

const cmcFull = 0x40400 // CMC, with a full response

// ways are those that there are, as Windows uses them: over HTTPS each request has a ticket, over RPC each connection.
func ways(w *world.World) []way {
	return []way{
		{"WSTEP", 160, func(b *testing.B) func([]byte) error {
			c := w.Client(b, "alice")
			return func(der []byte) error {
				_, err := c.Submit(b, der)
				return err
			}
		}},
		{"ICPR", 160, func(b *testing.B) func([]byte) error {
			c := msrpc.Passage(b, "alice")
			return func(der []byte) error {
				out, err := c.CertServerRequest(gssapi.NewSecurityContext(background), &icertpassage.CertServerRequestRequest{Flags: cmcFull, Authority: world.CAName, Attributes: octets(nil), Request: octets(der)})
				return issued(out != nil && out.Disposition == 3, err)
			}
		}},
		{"DCOM", 160, func(b *testing.B) func([]byte) error {
			c := msrpc.Object(msrpc.Dial(b, "alice", dcerpc.WithSeal()), msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd2.NewCertRequestD2Client)
			return func(der []byte) error {
				out, err := c.Request2(gssapi.NewSecurityContext(background), &icertrequestd2.Request2Request{This: msrpc.This(), Flags: cmcFull, Authority: world.CAName, Request: octets(der)})
				return issued(out != nil && out.Disposition == 3, err)
			}
		}},
		{"WSTEP, anew", 48, func(b *testing.B) func([]byte) error { // logon of the client, TLS, request
			return func(der []byte) error {
				c := w.Client(b, "alice")
				_, err := c.Submit(b, der)
				c.Kerberos.Close()
				return err
			}
		}},
		{"DCOM, anew", 48, func(b *testing.B) func([]byte) error { // logon of the client, two connections, activation, request
			return func(der []byte) error {
				c := msrpc.Dial(b, "alice", dcerpc.WithSeal())
				d2 := msrpc.Object(c, msrpc.ClassRequest, icertrequestd2.CertRequestD2IID, icertrequestd2.NewCertRequestD2Client)
				out, err := d2.Request2(gssapi.NewSecurityContext(background), &icertrequestd2.Request2Request{This: msrpc.This(), Flags: cmcFull, Authority: world.CAName, Request: octets(der)})
				for _, conn := range []dcerpc.Conn{c.Resolver, c.Calls} {
					_ = conn.Close(c.Ctx)
				}
				return issued(out != nil && out.Disposition == 3, err)
			}
		}},
	}
}

func octets(b []byte) *dcomwcce.CertTransportBlob {
	return &dcomwcce.CertTransportBlob{Length: uint32(len(b)), Buffer: b}
}

func issued(ok bool, err error) error {
	if err == nil && !ok {
		err = errors.New("it was not issued")
	}
	return err
}

// BenchmarkWays lets 1 and 16 clients enroll by each way in turn against a gateway in a process of its own, and prints the best of three
// rounds: certificates a second, with clients on the same machine, and what the gateway's process used for each, less what it uses when nobody
// comes, which looks at the directory five times a second here. The ratio is to WSTEP. New connections wait for the lab's KDC, for the client's
// logon and two tickets.
func BenchmarkWays(b *testing.B) {
	address := world.Env("LAB_GW_IP")
	w, path := world.Prepare(b, fmt.Sprintf(`listen: {https: "%[1]s:443", http: "%[1]s:80", metrics: "off", rpc: "%[1]s:49200", epm: "%[1]s:135"}`, address))
	p := world.NewProcess(b, w, path)
	p.Start(b)
	exchange := w.Client(b, "alice").Exchange(b)
	idle := idleCPU(b, p)
	var keys []*rsa.PrivateKey
	for range 16 {
		keys = append(keys, testpki.RSA(b, 2048))
	}
	fmt.Printf("\nthe gateway alone uses %.1f %% of a core", 100*idle)
	fmt.Printf("\n%-10s %-8s %-12s %8s %8s %14s %8s\n", "request", "clients", "way", "/s", "ratio", "CPU here, ms", "ratio")
	for _, template := range []string{"LabUserSMIME", "LabUserAuth"} {
		for _, clients := range []int{1, 16} {
			list := ways(w)
			best := make([]result, len(list))
			opened := make([][]func([]byte) error, len(list))
			for i, way := range list {
				for range clients {
					opened[i] = append(opened[i], way.open(b))
				}
			}
			for range 3 {
				for i := range list {
					best[i].better(submitAll(b, p, idle, opened[i], waysRequests(b, template, exchange, keys, list[i].n)))
				}
			}
			for i, way := range list {
				r := best[i]
				fmt.Printf("%-10s %-8d %-12s %8.0f %8.2f %14.2f %8.2f\n", map[string]string{"LabUserSMIME": "archived", "LabUserAuth": "plain"}[template], clients, way.name,
					r.rate, r.rate/best[0].rate, ms(r.cpu), float64(r.cpu)/float64(best[0].cpu))
			}
		}
	}
}

// result of a round: certificates a second, and processor time for one.
type result struct {
	rate float64
	cpu  time.Duration
}

func (r *result) better(other result) {
	r.rate = max(r.rate, other.rate)
	if r.cpu == 0 || other.cpu < r.cpu {
		r.cpu = other.cpu
	}
}

// idleCPU is the share of a core that the process uses by itself.
func idleCPU(b *testing.B, p *world.Process) float64 {
	b.Helper()
	const wait = 4 * time.Second
	before, err := p.CPU()
	if err != nil {
		b.Fatal(err)
	}
	time.Sleep(wait)
	after, err := p.CPU()
	if err != nil {
		b.Fatal(err)
	}
	return float64(after-before) / float64(wait)
}

// submitAll lets each client take requests until there are no more.
func submitAll(b *testing.B, p *world.Process, idle float64, clients []func([]byte) error, requests [][]byte) result {
	b.Helper()
	before, err := p.CPU()
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	free := make(chan func([]byte) error, len(clients))
	for _, c := range clients {
		free <- c
	}
	each(len(clients), requests, func(der []byte) {
		submit := <-free
		if err := submit(der); err != nil {
			b.Error(err)
		}
		free <- submit
	})
	wall := time.Since(begin)
	after, err := p.CPU()
	if err != nil {
		b.Fatal(err)
	}
	used := after - before - time.Duration(idle*float64(wall))
	return result{float64(len(requests)) / wall.Seconds(), used / time.Duration(len(requests))}
}

// waysRequests makes requests with few keys: making keys would take longer than what is measured.
func waysRequests(b *testing.B, template string, exchange *x509.Certificate, keys []*rsa.PrivateKey, n int) [][]byte {
	b.Helper()
	if template != "LabUserSMIME" {
		exchange = nil
	}
	out := make([][]byte, n)
	measure(n, func(i int) {
		der, err := wcce.NewRequest(wcce.RequestOptions{Key: keys[i%len(keys)], Exchange: exchange,
			Extensions: []wcce.Extension{{OID: wcce.OIDTemplateName, Value: wcce.BMPString(template)}}})
		if err != nil {
			b.Error(err)
		}
		out[i] = der
	})
	return out
}
