package demo

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// step is one line of the time line; do returns what it proved.
type step struct {
	name string
	do   func() (string, error)
}

func (s *stage) steps() []step {
	return []step{
		{"directory", s.directory},
		{"gateway", s.startGateway},
		{"recovery agent", func() (string, error) { return s.recoveryAgent("kra1") }},
		{"alice enrolls", s.aliceEnrolls},
		{"bob writes to alice", s.encrypt},
		{"the key is lost", s.loseKey},
		{"another agent", s.wrongAgent},
		{"recovery", s.recoverKey},
		{"the mail opens", s.decrypt},
		{"bob is refused", func() (string, error) { return s.refused("bob", "no Enroll right on the template") }},
		{"carol is refused", func() (string, error) { return s.refused("carol", "attribute mail") }},
		{"dave is refused", s.daveRefused},
		{"audit log", s.audit},
	}
}

func (s *stage) directory() (string, error) {
	if err := s.logon("Administrator", "admin"); err != nil {
		return "", err
	}
	version, err := s.call("", "", "samba", "-V")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Samba %s is the domain controller %s; its KDC gave Administrator a ticket",
		strings.TrimPrefix(strings.TrimSpace(version), "Version "), env("LAB_DC")), nil
}

func (s *stage) startGateway() (string, error) {
	// The lab's CA key is in the clear; the gateway takes only encrypted ones.
	if _, err := s.call("", "", "openssl", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", env("LAB_ISSUING_CA_KEY"),
		"-out", s.path("issuing-ca.key"), "-passout", "file:"+s.path("passphrase")); err != nil {
		return "", err
	}
	if _, err := s.enrollgate("", "config", "check"); err != nil {
		return "", err
	}
	log, err := os.OpenFile(s.path("gateway.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer log.Close()
	s.gateway = exec.Command(s.self, "serve")
	s.gateway.Env, s.gateway.Stdout, s.gateway.Stderr = s.env, log, log
	begin := time.Now()
	if err := s.gateway.Start(); err != nil {
		return "", err
	}
	if err := s.waitReady(); err != nil {
		return "", err
	}
	return fmt.Sprintf("serves https://%s after %d ms; reads templates and groups over LDAP sealed by Kerberos", env("LAB_GATEWAY"), time.Since(begin).Milliseconds()), nil
}

// waitReady asks until the gateway answers and has read the directory.
func (s *stage) waitReady() error {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(env("LAB_CA_PEM"))
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	var last error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if s.gateway.ProcessState != nil {
			return errors.New("the gateway has ended")
		}
		var resp *http.Response
		if resp, last = client.Get("https://" + env("LAB_GATEWAY") + "/healthz"); last == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Errorf("health: %s", resp.Status)
		}
	}
	return fmt.Errorf("the gateway does not answer: %w", last)
}

// recoveryAgent lets an agent enroll for the agents' template, which a manager has to approve, and designates it.
func (s *stage) recoveryAgent(name string) (string, error) {
	if err := s.logon(name, name); err != nil {
		return "", err
	}
	args := []string{"enroll", "--template", "LabKRA", "--ca-file", env("LAB_CA_PEM"), "--out", s.path(name), "--password-env", "LAB_PASSWORD"}
	if _, err := s.enrollgate(name, args...); exitOf(err) != 4 {
		return "", fmt.Errorf("the request should be pending: %w", err)
	}
	list, err := s.enrollgate("", "requests", "list", "--state", "pending", "--output", "json")
	if err != nil {
		return "", err
	}
	var pending []struct{ ID int64 }
	if err := json.Unmarshal([]byte(list), &pending); err != nil || len(pending) != 1 {
		return "", fmt.Errorf("one request should be pending: %s", list)
	}
	id := fmt.Sprint(pending[0].ID)
	if _, err := s.enrollgate("", "requests", "approve", id); err != nil {
		return "", err
	}
	if _, err := s.enrollgate(name, "enroll", "--resume", s.path(name+".pending"), "--ca-file", env("LAB_CA_PEM"),
		"--out", s.path(name), "--password-env", "LAB_PASSWORD", "--wait", "20s"); err != nil {
		return "", err
	}
	if _, err := s.enrollgate("", "escrow", "agents", "add", s.path(name+".pem")); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s asked, request %s was pending, a manager approved it, the client's poll fetched the certificate;\nkeys are sealed to %s from now on", name, id, name), nil
}

func exitOf(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return 0
}

func (s *stage) aliceEnrolls() (string, error) {
	if err := s.logon("alice", "alice"); err != nil {
		return "", err
	}
	text, err := s.enrollgate("alice", "enroll", "--template", "LabUserSMIME", "--ca-file", env("LAB_CA_PEM"),
		"--out", s.path("alice"), "--password-env", "LAB_PASSWORD", "--output", "json")
	if err != nil {
		return "", err
	}
	var r struct {
		Subject           string
		ArchivedConfirmed bool `json:"archived_confirmed"`
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return "", err
	}
	if !r.ArchivedConfirmed {
		return "", errors.New("the gateway did not confirm that the key is archived")
	}
	if _, err := s.call("", "", "openssl", "verify", "-CAfile", env("LAB_CA_PEM"), "-untrusted", env("LAB_ISSUING_CA_PEM"), "-purpose", "smimeencrypt", s.path("alice.pem")); err != nil {
		return "", err
	}
	return "Kerberos, GetPolicies, CMC with the private key enclosed; the reply confirms the archived key's hash;\n" + r.Subject, nil
}

func (s *stage) encrypt() (string, error) {
	_, err := s.call("", "", "openssl", "cms", "-encrypt", "-aes256", "-in", s.path("mail.txt"), "-out", s.path("mail.p7m"), s.path("alice.pem"))
	return "openssl cms encrypts a mail to alice's certificate", err
}

func (s *stage) loseKey() (string, error) {
	for _, name := range []string{"alice.key", "alice.p12"} {
		if err := os.Remove(s.path(name)); err != nil {
			return "", err
		}
	}
	// What is left on alice's side must not open the mail.
	if _, err := s.call("", "", "openssl", "cms", "-decrypt", "-in", s.path("mail.p7m"), "-recip", s.path("alice.pem"), "-inkey", s.path("alice.pem")); err == nil {
		return "", errors.New("the mail opens without the key")
	}
	return "alice's key files are deleted; the mail does not open any more", nil
}

func (s *stage) wrongAgent() (string, error) {
	if _, err := s.recoveryAgent("kra2"); err != nil {
		return "", err
	}
	_, err := s.recoverWith("kra2", "stolen.p12")
	if exitOf(err) != 3 {
		return "", fmt.Errorf("kra2 should be refused, but: %w", err)
	}
	return "kra2 became an agent later, so alice's key is not sealed to it: refused, and logged\n" + quote(err), nil
}

func (s *stage) recoverWith(agent, out string) (string, error) {
	return s.enrollgate("", "escrow", "recover", "--owner", "alice", "--key", s.path(agent+".p12"), "--key-password-env", "LAB_PASSWORD",
		"--out", s.path(out), "--out-password-env", "LAB_PASSWORD", "--reason", "alice lost her laptop")
}

func quote(err error) string { return "“" + strings.TrimPrefix(err.Error(), "enrollgate: ") + "”" }

func (s *stage) recoverKey() (string, error) {
	if _, err := s.recoverWith("kra1", "recovered.p12"); err != nil {
		return "", err
	}
	if _, err := s.call("", "", "openssl", "pkcs12", "-in", s.path("recovered.p12"), "-passin", "env:LAB_PASSWORD", "-nodes", "-nocerts", "-out", s.path("recovered.key")); err != nil {
		return "", err
	}
	return "kra1's key opens the escrow record; the key leaves as PKCS#12, after the audit line is on disk", nil
}

func (s *stage) decrypt() (string, error) {
	text, err := s.call("", "", "openssl", "cms", "-decrypt", "-in", s.path("mail.p7m"), "-recip", s.path("alice.pem"), "-inkey", s.path("recovered.key"))
	if err != nil {
		return "", err
	}
	if !bytes.Equal(bytes.ReplaceAll([]byte(text), []byte("\r\n"), []byte("\n")), []byte(mail)) {
		return "", fmt.Errorf("another text came out: %q", text)
	}
	return "openssl cms decrypts it with the recovered key: “" + strings.Split(mail, "\n")[4] + "”", nil
}

// refused lets an account enroll and requires that it is told why not.
func (s *stage) refused(account, why string) (string, error) {
	if err := s.logon(account, account); err != nil {
		return "", err
	}
	return s.refusedNow(account, why)
}

func (s *stage) refusedNow(account, why string) (string, error) {
	_, err := s.enrollgate(account, "enroll", "--template", "LabUserSMIME", "--ca-file", env("LAB_CA_PEM"), "--out", s.path(account), "--password-env", "LAB_PASSWORD", "--force-request", "--output", "json")
	if exitOf(err) != 3 || !strings.Contains(err.Error(), why) {
		return "", fmt.Errorf("%s should be refused for %q, but: %w", account, why, err)
	}
	return quote(err), nil
}

// daveRefused shows both walls: the KDC gives a disabled account no ticket, and where the account was disabled after it
// got one, the gateway asks the directory.
func (s *stage) daveRefused() (string, error) {
	if err := s.logon("dave", "dave"); err == nil {
		return "", errors.New("the KDC gave a disabled account a ticket")
	}
	if err := s.setAccountControl("512"); err != nil {
		return "", err
	}
	if err := s.logon("dave", "dave"); err != nil {
		return "", err
	}
	// The ticket for the gateway must exist before the account is disabled: a careful KDC gives none afterwards.
	if _, err := s.call("dave", "", "kvno", "HTTP/"+env("LAB_GATEWAY")); err != nil {
		return "", err
	}
	if err := s.setAccountControl("514"); err != nil {
		return "", err
	}
	text, err := s.refusedNow("dave", "is disabled")
	return "the KDC refuses him; with a ticket from before he was disabled the gateway does:\n" + text, err
}

func (s *stage) setAccountControl(value string) error {
	ldif := "dn: CN=Dave Draper,CN=Users," + env("LAB_BASE_DN") + "\nchangetype: modify\nreplace: userAccountControl\nuserAccountControl: " + value + "\n"
	_, err := s.call("", ldif, "ldapmodify", "-H", env("LAB_LDAPS_URL"), "-x", "-D", "Administrator@lab.test", "-w", env("LAB_PASSWORD"))
	return err
}

func (s *stage) audit() (string, error) {
	text, err := s.enrollgate("", "audit", "verify")
	return "the chain of hashes is whole: " + strings.TrimSpace(text), err
}
