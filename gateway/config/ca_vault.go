package config

// Vault is a PKI engine of HashiCorp Vault or OpenBao.
type Vault struct {
	Connection `yaml:",inline"`
	Namespace  string       `yaml:"namespace"`
	Mount      string       `yaml:"mount"`
	Sign       string       `yaml:"sign"` // role (default) or verbatim
	Role       string       `yaml:"role"`
	Issuer     string       `yaml:"issuer"`
	Token      Secret       `yaml:"token"` // read anew each time
	AppRole    VaultAppRole `yaml:"app_role"`
}

// VaultAppRole is a login of a machine, in place of a token.
type VaultAppRole struct {
	Mount    string `yaml:"mount"`
	RoleID   string `yaml:"role_id"`
	SecretID Secret `yaml:"secret_id"`
}

func (v *Vault) paths() []*string {
	return append(v.Connection.paths(), &v.Token.File, &v.AppRole.SecretID.File)
}

func (v *Vault) check(path string, need func(bool, string, ...any)) {
	v.Connection.check(path, need)
	need(v.Sign == "" || v.Sign == "role" || v.Sign == "verbatim", "%s.sign: %q is neither role nor verbatim", path, v.Sign)
	need(v.Role != "" || v.Sign == "verbatim", "%s.role: missing; it is the role of the mount that orders are signed with (vault write pki/roles/NAME ...)", path)
	login := v.AppRole.RoleID != "" || v.AppRole.SecretID.Set()
	need(v.Token.Set() != login, "%s: either token (file or env) or app_role is needed", path)
	need(!login || v.AppRole.RoleID != "" && v.AppRole.SecretID.Set(), "%s.app_role: role_id and secret_id (file or env) are needed", path)
}
