package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/enrollgate/enrollgate/ldapsync"
)

// succeeded logs what was written.
func (p *Publisher) succeeded(r *Report) {
	if r.Attempts > 0 {
		delete(p.denied, r.Place)
	}
	r.Attempts, r.LastError, r.Next = 0, "", nil
	if len(r.Add)+len(r.Remove) == 0 {
		return
	}
	p.o.Count("added", len(r.Add))
	p.o.Count("removed", len(r.Remove))
	p.fields(r).WithFields(logrus.Fields{"added": serials(r.Add), "removed": serials(r.Remove)}).Info("certificates in the directory are up to date")
}

func serials(items []Item) []string {
	out := make([]string, len(items))
	for i, item := range items {
		out[i] = item.Serial
	}
	return out
}

func (p *Publisher) fields(r *Report) *logrus.Entry {
	return p.o.Log.WithFields(logrus.Fields{"place": r.Place, "target": r.Name, "dn": r.DN})
}

// failed records a failure and when to try again, unless dry. While the directory as a whole gives no answer, an object is
// not punished for it with a longer wait. A missing right is reported once, until something that failed succeeds; other
// objects that miss it, and further attempts, are in the metrics and in what enrollgate publish prints.
func (p *Publisher) failed(ctx context.Context, r *Report, err error, silent, dry bool) {
	r.Error = err.Error()
	right, denied := errors.AsType[*ldapsync.RightError](err)
	if denied {
		r.Fix = fix(right, p.o.Account)
	}
	if dry {
		return
	}
	most := p.o.MaxRetry
	if silent {
		most = p.o.Retry
	}
	now := p.o.Now()
	if err := p.o.Ledger.PublicationFailed(ctx, r.Target, now, r.Error, p.o.Retry, most); err != nil {
		p.fields(r).WithError(err).Error("that a certificate could not be published cannot be recorded")
		return
	}
	next := now.Add(min(p.o.Retry<<min(r.Attempts, 16), most))
	r.Attempts, r.LastError, r.Next = r.Attempts+1, r.Error, &next
	p.o.Count("failed", 1)
	log := p.fields(r).WithError(err).WithField("attempts", r.Attempts)
	switch {
	case denied && !p.denied[r.Place]:
		p.denied[r.Place] = true
		log.WithField("fix", r.Fix).Error("certificates cannot be published: a right is missing; they are published once it is granted")
	case !denied && r.Attempts == 1:
		log.Warn("certificates cannot be published now; this is tried again")
	default:
		log.Debug("certificates cannot be published now; this is tried again")
	}
}

// schemaIDGUIDs of the attribute and the classes, for the grants ([MS-ADA3], [MS-ADSC]).
const (
	guidUserCertificate = "bf967a7f-0de6-11d0-a285-00aa003049e2"
	guidUser            = "bf967aba-0de6-11d0-a285-00aa003049e2"
	guidComputer        = "bf967a86-0de6-11d0-a285-00aa003049e2"
	classKRA            = "msPKI-PrivateKeyRecoveryAgent"
)

// fix is how an administrator grants the missing right, and nothing more.
func fix(e *ldapsync.RightError, account string) string {
	if e.KRA {
		_, container, _ := strings.Cut(e.DN, ",")
		return fmt.Sprintf(`run, as an administrator of the forest: dsacls "%[1]s" /G "%[2]s:CC;%[3]s" and dsacls "%[1]s" /I:S /G "%[2]s:RPWP;userCertificate;%[3]s"`,
			container, account, classKRA)
	}
	domain := e.DN
	if i := strings.Index(strings.ToUpper(domain), ",DC="); i >= 0 {
		domain = domain[i+1:]
	}
	return fmt.Sprintf(`run, as an administrator of the domain: dsacls "%[1]s" /I:S /G "%[2]s:RPWP;userCertificate;user" and the same with computer for user; `+
		`or, with Samba, samba-tool dsacl set --objectdn="%[1]s" --sddl="(OA;CIIO;RPWP;%[3]s;%[4]s;SID)(OA;CIIO;RPWP;%[3]s;%[5]s;SID)" with the SID of %[2]s; `+
		`accounts of administrators do not inherit it: they need it on CN=AdminSDHolder,CN=System,%[1]s`,
		domain, account, guidUserCertificate, guidUser, guidComputer)
}
