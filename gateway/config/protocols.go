package config

import "fmt"

// protocol is what the values of a foreign CA can do.
type protocol interface {
	paths() []*string
	check(path string, need func(bool, string, ...any))
}

// protocols are the values for each driver, by the driver's name, and what they are called in the file.
func (c *CA) protocols() map[string]struct {
	key string
	protocol
} {
	return map[string]struct {
		key string
		protocol
	}{"cmp": {"cmp", &c.CMP}, "adcs": {"adcs", &c.ADCS}, "scep": {"scep", &c.SCEP}, "acme": {"acme", &c.ACME}, "aws-pca": {"aws_pca", &c.AWSPCA}}
}

// protocolPaths are the paths in all of them.
func (c *CA) protocolPaths() (out []*string) {
	for _, p := range c.protocols() {
		out = append(out, p.paths()...)
	}
	return out
}

// checkProtocol checks the values of the CA's driver, and that nothing needs a key that the gateway does not hold.
func (c *CA) checkProtocol(i int, need func(bool, string, ...any)) {
	p := c.protocols()[c.Driver]
	p.check(fmt.Sprintf("cas[%d].%s", i, p.key), need)
	identity := c.EnrollmentIdentity()
	need(identity == IdentityOwn || identity == IdentityUpstream, "cas[%d].identity: %q is not possible with a foreign CA, whose key the gateway does not hold; there are: own, upstream", i, c.Identity)
}
