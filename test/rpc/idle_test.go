package rpc

import (
	"encoding/binary"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/oiweiwei/go-msrpc/dcerpc"
	icertrequestd2 "github.com/oiweiwei/go-msrpc/msrpc/dcom/wcce/icertrequestd2/v0"

	"github.com/enrollgate/enrollgate/gateway/rpc/icpr"
	"github.com/enrollgate/enrollgate/gateway/rpc/pdu"
	"github.com/enrollgate/enrollgate/test/world"
)

// TestTenThousandIdleConnectionsLeaveRoom holds 10,000 connections that are bound and prove nobody, against a gateway in a process of its own,
// half at each port. Its memory stays bounded, and a client enrolls by DCOM meanwhile as fast as without them.
func TestTenThousandIdleConnectionsLeaveRoom(t *testing.T) {
	const n = 10000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < n+1000 { // the gateway's process inherits it
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n + 1000, Max: max(limit.Max, n+1000)}); err != nil {
			t.Fatalf("%d open files are not enough, and cannot be raised to %d: %v", limit.Cur, n+1000, err)
		}
	}
	address := world.Env("LAB_GW_IP")
	w, path := world.Prepare(t, fmt.Sprintf(`listen: {https: "%[1]s:443", http: "off", metrics: "off", rpc: "%[1]s:49200", epm: "%[1]s:135"}`, address))
	p := world.NewProcess(t, w, path)
	p.Start(t)
	enroll := func() time.Duration {
		t.Helper()
		began := time.Now()
		d2 := dialD2(t, "alice", dcerpc.WithSeal())
		out := request2(t, d2, &icertrequestd2.Request2Request{Flags: pkcs10, Attributes: "CertificateTemplate:LabUserAuth\n", Request: blob(csr(t))})
		if out.Disposition != 3 {
			t.Fatalf("0x%x", out.Disposition)
		}
		return time.Since(began)
	}
	alone := min(enroll(), enroll())
	before := p.Memory(t)
	ports := []struct {
		port   string
		syntax pdu.Syntax
	}{{"135", pdu.Syntax{UUID: pdu.MustUUID("e1af8308-5d1f-11c9-91a4-08002b14a0fa"), Major: 3}}, {"49200", icpr.Syntax}}
	began := time.Now()
	for i := range n {
		to := ports[i%2]
		c, err := net.Dial("tcp", address+":"+to.port)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		if _, err := c.Write(plainBind(to.syntax)); err != nil {
			t.Fatal(err)
		}
		if ack := receive(t, c); ack == nil || ack.Kind != pdu.KindBindAck {
			t.Fatalf("connection %d: %+v", i, ack)
		}
	}
	opened := time.Since(began)
	each := (p.Memory(t) - before) / n
	with := min(enroll(), enroll())
	t.Logf("%d connections in %s take %d octets each; an enrollment by DCOM took %s without, and %s with them", n, opened.Round(time.Millisecond), each, alone.Round(time.Millisecond), with.Round(time.Millisecond))
	if each > 32<<10 || with > alone+2*time.Second {
		t.Error("too much")
	}
}

// plainBind is a bind without authentication (C706 12.6.4.3).
func plainBind(syntax pdu.Syntax) []byte {
	le := binary.LittleEndian
	body := []byte{0xd0, 0x16, 0xd0, 0x16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0} // fragments of 5840, no group, one context with one syntax
	for _, s := range []pdu.Syntax{syntax, pdu.NDR} {
		body = append(body, s.UUID[:]...)
		body = le.AppendUint16(le.AppendUint16(body, s.Major), s.Minor)
	}
	head := []byte{5, 0, 11, 3, 0x10, 0, 0, 0}
	head = le.AppendUint16(head, uint16(16+len(body)))
	return append(append(head, 0, 0, 1, 0, 0, 0), body...)
}
