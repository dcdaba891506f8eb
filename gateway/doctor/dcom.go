package doctor

import (
	"context"
	"net"
	"strings"

	"github.com/enrollgate/enrollgate/gateway/config"
)

// dcomNames are those that DCOM clients are told ([MS-DCOM] 2.2.19.3), where they are served.
func dcomNames(cfg *config.Config) []string {
	if cfg.Listen.RPC == "off" || cfg.Listen.RPC == "" || cfg.Listen.EPM == "off" || cfg.Listen.EPM == "" {
		return nil
	}
	out := []string{cfg.PublicName}
	if short, _, found := strings.Cut(cfg.PublicName, "."); found && short != "" {
		out = append(out, short)
	}
	return out
}

// dcomFindings looks whether the names that DCOM clients are told lead to this machine: their objects are in this process, so that all of
// a client's connections must come here.
func dcomFindings(ctx context.Context, cfg *config.Config) (out []Finding) {
	wanted := dcomNames(cfg)
	if len(wanted) == 0 {
		return nil
	}
	own := map[string]bool{}
	list, err := net.InterfaceAddrs()
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			own[n.IP.String()] = true
		}
	}
	if err != nil || len(own) == 0 {
		return []Finding{unknown("DCOM", "the addresses of this machine cannot be listed: %v", err)}
	}
	for _, name := range wanted {
		addresses, err := net.DefaultResolver.LookupHost(ctx, name)
		out = append(out, judgeDCOMName(name, addresses, err, func(a string) bool { return own[a] || net.ParseIP(a).IsLoopback() }))
	}
	return out
}

// judgeDCOMName says what is wrong with the addresses of a name.
func judgeDCOMName(name string, addresses []string, err error, own func(string) bool) Finding {
	subject := "DCOM at " + name
	if err != nil {
		return unknown(subject, "the name has no address, as seen from this machine: %v", err)
	}
	var foreign []string
	for _, a := range addresses {
		if !own(a) {
			foreign = append(foreign, a)
		}
	}
	switch {
	case len(foreign) == 0:
		return well(subject, "it leads to this machine")
	case len(foreign) < len(addresses):
		return bad(subject, "give each gateway a public name of its own, which leads to it alone",
			"%s is another machine than this one: a client whose connections are not all made to the same one loses its objects", strings.Join(foreign, ", "))
	}
	return unknown(subject, "%s is no address of this machine: if a load balancer is there, it must send all connections of a client to the same gateway", strings.Join(foreign, ", "))
}
