package gateway

import (
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/enrollgate/enrollgate/gateway/rpc/certadmin"
	"github.com/enrollgate/enrollgate/gateway/rpc/certrequest"
	"github.com/enrollgate/enrollgate/gateway/rpc/dcom"
	"github.com/enrollgate/enrollgate/gateway/rpc/server"
)

// serveDCOM adds DCOM to the servers of RPC and of the endpoint mapper: clients are told the public name and its first label, the
// addresses of which they must reach this instance by, as objects are its own.
func (g *Gateway) serveDCOM(calls, mapper *server.Server, at *net.TCPAddr) error {
	names := []string{g.Config.PublicName}
	if short, _, found := strings.Cut(g.Config.PublicName, "."); found && short != "" {
		names = append(names, short)
	}
	x, err := dcom.New(dcom.Options{Names: names, Port: uint16(at.Port), Address: at.IP, Classes: g.dcomClasses()}) //nolint:gosec // a TCP port
	if err != nil {
		return err
	}
	x.RegisterResolver(mapper)
	x.RegisterObjects(calls)
	g.dcom = x
	return nil
}

// dcomClasses are those that clients can activate.
func (g *Gateway) dcomClasses() []dcom.Class {
	return []dcom.Class{
		{Name: "CCertRequestD", CLSID: certrequest.CLSID, Interfaces: g.RequestInterfaces()},
		{Name: "CCertAdminD", CLSID: certadmin.CLSID, Interfaces: g.AdminInterfaces()},
	}
}

// dcomGauges show what DCOM clients have.
func dcomGauges(g *Gateway) []prometheus.Collector {
	gauge := func(name, help string, of func(dcom.Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if g.dcom == nil {
				return 0
			}
			return float64(of(g.dcom.Stats()))
		})
	}
	return []prometheus.Collector{
		gauge("enrollgate_dcom_objects", "Objects that DCOM clients have.", func(s dcom.Stats) int { return s.Objects }),
		gauge("enrollgate_dcom_ping_sets", "Ping sets of DCOM clients.", func(s dcom.Stats) int { return s.PingSets }),
	}
}
