package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/gateway/kerberos"
	"github.com/enrollgate/enrollgate/ldapsync"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/sirupsen/logrus"
)

// wanted are the service principal names that clients ask tickets for; the second value is the alias by which a KDC knows it
// too, unless somebody has the name itself (sPNMappings, [MS-ADTS] 6.1.1.2.4.1.2).
func (p *patient) wanted() [][2]string {
	host := p.cfg.PublicName
	out := [][2]string{{"HTTP/" + host, "HOST/" + host}}
	for _, spn := range p.cfg.Kerberos.ServicePrincipals {
		spn, _, _ = strings.Cut(spn, "@")
		if !strings.EqualFold(spn, out[0][0]) {
			out = append(out, [2]string{spn, ""})
		}
	}
	if p.cfg.Listen.RPC != "off" && p.cfg.Listen.RPC != "" {
		short, _, _ := strings.Cut(host, ".")
		out = append(out, [2]string{"HOST/" + host, ""}, [2]string{"HOST/" + short, ""}, [2]string{"RPCSS/" + host, "HOST/" + host})
	}
	return out
}

// holder finds who has a name, or its alias.
func (p *patient) holder(ctx context.Context, spn, alias string) ([]ldapsync.Holder, error) {
	found, err := p.forest.Holders(ctx, spn)
	if err == nil && len(found) == 0 && alias != "" {
		found, err = p.forest.Holders(ctx, alias)
	}
	return found, err
}

// principals looks for every name in the whole forest: a KDC refuses one that two accounts have.
func principals(ctx context.Context, p *patient) ([]Finding, error) {
	if _, err := p.snapshot(); err != nil {
		return nil, err
	}
	keys, keytabErr := kerberos.Keytab(p.cfg.Kerberos.Keytab)
	var out []Finding
	for _, w := range p.wanted() {
		spn := w[0]
		found, err := p.holder(ctx, spn, w[1])
		if err != nil && len(found) < 2 {
			out = append(out, unknown(spn, "not every domain can be asked: %v", err))
			continue
		}
		out = append(out, judgeHolders(spn, found, keys, keytabErr == nil))
	}
	return out, nil
}

// judgeHolders says what is wrong with those who have a name.
func judgeHolders(spn string, found []ldapsync.Holder, keys []kerberos.KeyInfo, known bool) Finding {
	var who []string
	for _, h := range found {
		who = append(who, h.Domain+`\`+h.Account)
	}
	switch {
	case len(found) == 0:
		return bad(spn, "setspn -S "+spn+" ACCOUNT, for the account of the keytab", "no account of the forest has it: clients get no ticket")
	case len(found) > 1:
		return bad(spn, "take it away from all but the gateway's account: setspn -D "+spn+" ACCOUNT", "%d accounts have it, and the KDC gives a ticket for none: %s", len(found), strings.Join(who, ", "))
	case found[0].Disabled:
		return bad(spn, "Enable-ADAccount "+found[0].Account, "the account %s is disabled", who[0])
	case known && accountKeys(keys) && len(keysFor(keys, &found[0])) == 0:
		return bad(spn, "setspn -D "+spn+" "+found[0].Account+", then setspn -S "+spn+" with the account of the keytab; or make the keytab of "+found[0].Account,
			"%s has it, but the keytab has no key of that account: tickets cannot be opened", who[0])
	}
	return well(spn, "%s has it, and nobody else", who[0])
}

// accountKeys tells whether a keytab names accounts, and not only services.
func accountKeys(keys []kerberos.KeyInfo) bool {
	return slices.ContainsFunc(keys, func(k kerberos.KeyInfo) bool { return !strings.Contains(k.Principal, "/") })
}

// keysFor are the keys of a keytab that are of an account, by its name or by one of its services.
func keysFor(keys []kerberos.KeyInfo, h *ldapsync.Holder) (out []kerberos.KeyInfo) {
	for _, k := range keys {
		if strings.EqualFold(k.Principal, h.Account) || strings.Contains(k.Principal, "/") && h.Has(k.Principal) {
			out = append(out, k)
		}
	}
	return out
}

// keytabs compares the keytab with the account that has the gateway's name.
func keytabs(ctx context.Context, p *patient) ([]Finding, error) {
	path := p.cfg.Kerberos.Keytab
	keys, err := kerberos.Keytab(path)
	if err != nil {
		return []Finding{bad(path, "export it again: ktpass on Windows, ktutil or samba-tool domain exportkeytab", "%v", err)}, nil
	}
	if _, err := p.snapshot(); err != nil {
		return nil, err
	}
	w := p.wanted()[0]
	found, err := p.holder(ctx, w[0], w[1])
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, notMade{"no account has " + w[0]}
	}
	h := found[0]
	for _, other := range found { // of several, the one that the keytab is for
		if len(keysFor(keys, &other)) > 0 {
			h = other
		}
	}
	return judgeKeytab(path, keys, &h, p.cfg.Kerberos.AllowRC4), nil
}

// judgeKeytab says what is wrong with the keys of an account.
func judgeKeytab(path string, keys []kerberos.KeyInfo, h *ldapsync.Holder, rc4 bool) (out []Finding) {
	own := keysFor(keys, h)
	if len(own) == 0 {
		return []Finding{bad(path, "export the keytab of "+h.Account, "it has no key of %s, whose tickets clients bring", h.Account)}
	}
	newest := slices.MaxFunc(own, func(a, b kerberos.KeyInfo) int { return cmp.Compare(a.Version, b.Version) }).Version
	version := cmp.Or(h.KeyVersion, newest)
	export := "export the keytab of " + h.Account + " again; the gateway reads it without a restart"
	switch {
	case h.KeyVersion == 0:
		out = append(out, unknown(path, "the key version of %s (msDS-KeyVersionNumber) cannot be read", h.Account))
	case newest < h.KeyVersion:
		return append(out, bad(path, export, "its newest key of %s has version %d, the directory has %d: the password was changed, and new tickets cannot be opened", h.Account, newest, h.KeyVersion))
	case !slices.ContainsFunc(own, func(k kerberos.KeyInfo) bool { return k.Version == h.KeyVersion }):
		return append(out, bad(path, "wait until the controllers have replicated; if this stays, "+export,
			"its key of %s has version %d, the directory has %d: this controller does not know the new password, or the version was typed wrongly", h.Account, newest, h.KeyVersion))
	}
	has := func(types ...int32) bool {
		return slices.ContainsFunc(own, func(k kerberos.KeyInfo) bool { return k.Version == version && slices.Contains(types, k.Type) })
	}
	types := h.EncryptionTypes
	const aes = ldapsync.EncryptionAES128 | ldapsync.EncryptionAES256
	setTypes := "Set-ADUser " + h.Account + " -KerberosEncryptionType AES128,AES256, then set its password again and export the keytab"
	switch {
	case types&aes == 0 && !rc4:
		out = append(out, bad(h.Account, setTypes, "msDS-SupportedEncryptionTypes is %d: tickets may be of RC4, which the gateway refuses", types))
	case types&ldapsync.EncryptionAES256 != 0 && !has(etypeID.AES256_CTS_HMAC_SHA1_96):
		out = append(out, bad(path, export+", with aes256-cts-hmac-sha1-96", "the KDC makes tickets for %s of AES-256, of which the keytab has no key of version %d", h.Account, version))
	case types&aes == ldapsync.EncryptionAES128 && !has(etypeID.AES128_CTS_HMAC_SHA1_96):
		out = append(out, bad(path, export+", with aes128-cts-hmac-sha1-96", "the KDC makes tickets for %s of AES-128, of which the keytab has no key of version %d", h.Account, version))
	case len(out) == 0:
		out = append(out, well(path, "version %d of %s, as in the directory: %s", version, h.Account, strings.Join(typeNames(own, version), ", ")))
	}
	return out
}

func typeNames(keys []kerberos.KeyInfo, version int) (out []string) {
	for _, k := range keys {
		if k.Version == version && !slices.Contains(out, k.TypeName) {
			out = append(out, k.TypeName)
		}
	}
	slices.Sort(out)
	return out
}

// ticket does what a client does: it gets a ticket for the gateway, as the gateway's own account, and lets the keytab open it.
func ticket(ctx context.Context, p *patient) ([]Finding, error) {
	spn, b := p.wanted()[0][0], p.cfg.Directory.Bind
	if b.Method != "gssapi" || b.Principal == "" || b.Keytab == "" {
		return nil, notMade{"needs an account with a keytab to get a ticket: directory.bind with gssapi"}
	}
	token, err := within(ctx, p.timeout, func(context.Context) ([]byte, error) {
		c, err := kerberos.NewClient(kerberos.ClientOptions{Principal: b.Principal, KeytabFile: b.Keytab, ConfigFile: p.cfg.Directory.Krb5Conf})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.Token(spn)
	})
	if err != nil {
		return []Finding{bad(spn, "see the checks of spn, keytab and clock; then krb5.conf and whether the KDC answers on port 88", "%s gets no ticket: %v", b.Principal, err)}, nil
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	k := p.cfg.Kerberos
	acceptor, err := kerberos.New(kerberos.Options{KeytabFile: k.Keytab, SPNs: k.ServicePrincipals, AllowRC4: k.AllowRC4, MaxClockSkew: k.MaxClockSkew, Log: log})
	if err != nil {
		return []Finding{bad(k.Keytab, "export it again with AES keys", "%v", err)}, nil
	}
	caller, _, err := acceptor.Accept(ctx, token)
	if err != nil {
		return []Finding{bad(spn, "export the keytab of the account that has the name again", "the keytab does not open a ticket that the KDC makes now: %v", err)}, nil
	}
	return []Finding{well(spn, "a ticket for %s was made and opened", caller.Principal)}, nil
}

// clock compares with the domain controller. Half of what Kerberos takes is bad enough.
func clock(ctx context.Context, p *patient) ([]Finding, error) {
	if p.forestErr != nil {
		return nil, notMade{"needs the directory, which cannot be read"}
	}
	c, err := p.forest.Controller(ctx)
	if err != nil {
		return nil, err
	}
	return []Finding{judgeClock(c.Host, c.Ahead, p.cfg.Kerberos.MaxClockSkew)}, nil
}

func judgeClock(host string, ahead, most time.Duration) Finding {
	limit := min(cmp.Or(most, 5*time.Minute), 5*time.Minute)
	text := fmt.Sprintf("%v apart", ahead.Abs())
	switch {
	case ahead > 0:
		text = fmt.Sprintf("this machine is %v behind", ahead)
	case ahead < 0:
		text = fmt.Sprintf("this machine is %v ahead", -ahead)
	}
	switch {
	case ahead.Abs() >= limit:
		return bad(host, "synchronise the clocks: timedatectl set-ntp true, with the domain controllers as servers", "%s: Kerberos refuses more than %v", text, limit)
	case ahead.Abs() >= limit/2:
		return bad(host, "synchronise the clocks before it gets worse: timedatectl set-ntp true, with the domain controllers as servers", "%s; Kerberos refuses from %v on", text, limit)
	}
	return well(host, "%s", text)
}
