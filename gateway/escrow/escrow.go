// Package escrow keeps private keys for the people who may recover them.
//
// A client encloses its key encrypted to an exchange certificate (Exchange). Open decrypts it, proves that it belongs to
// the request, seals it to the recovery agents of its Policy and wipes it; Record.Insert writes the sealed record in the
// transaction that opens the request's ledger row. Recover needs an agent's private key, which the gateway never holds. Keys
// that several agents open together (package quorum) are recovered by cases (packages cases and recovery). Batches (package batch) seal
// records to other agents, and prove that they can be opened.
//
// # Who may do what harm
//
// Trusted: the agents' machines with the agents' keys, the manager's machine while it has a case key, the domain's KDC, and
// the gateway at the moment in which it archives a key, when the key is in its memory.
//
//   - Who steals the database, a backup or the whole machine has sealed records and shares sealed to case keys, and no key that
//     opens either. Shares are deleted when a case ends. (TestAttackStolenDatabaseAndGatewayMachine, …StolenCaseKeyAfterTheEnd)
//   - Who runs the gateway can archive nothing more, refuse service, and read keys that arrive from then on. Those that are
//     archived stay closed: agents compare the code of a case with its manager by another way than the gateway, and it covers
//     the case key; certificate, owner and policy are checked on the agents' machines. (…CompromisedGatewayChangesTheCase)
//   - Who writes to the database can lose keys and cases, not open them: owner, public key, policy and number of agents are
//     authenticated in the record, approvals are signed with keys that follow from the shares, and what was delivered is asked of
//     the audit log. Package verify finds what was changed, package coverage whose keys are gone. (…SwappedRecord,
//     …LoweredQuorumInTheDatabase, …SwappedRecordIsFoundByVerify, …DeletedRecordIsMissingFromTheCoverage)
//   - m-1 agents together learn nothing of a key that takes m. One agent can refuse, and can send a bad share: that is found when
//     the key is put together, and named. (…OneBadAgentOpensAlone, …OneBadAgentSendsABadShare)
//   - A manager can ask, in writing, and be given what the agents approve. A manager who is an agent too has one of the two
//     parts in each case. Whoever is given the key can keep it: nothing takes that back. (…MaliciousManager)
//   - The worker of a batch (package batch), whom m agents have consented to, sees each of its keys on the own machine, and can
//     seal something else in place of one. So what was before stays until another agent has opened what is new. A gateway in
//     foreign hands cannot add an agent of its own to those that are sealed to, nor a worker: codes cover both.
//     (…CompromisedGatewayNamesAnAgentOfItsOwn, …WorkerUploadsAnotherPersonsKeyUnderAlicesRecord, …RewrapWorkerWhoIsNoAgent,
//     …LoweredQuorumOnRewrap, …RecordChangedBetweenDownloadAndUpload)
//   - Who writes to the directory's KRA container offers certificates; a person designates, or the gateway one that it has issued
//     itself after an approval, where that is configured. An agent with two certificates has one share.
//     (…AnAgentIsSlippedIntoTheKRAContainer, …OneAgentWithTwoCertificatesIsAQuorum)
//   - What was sent before does nothing when it is sent again. (…ReplayedCase, …ReplayedAndForgedApprovals, …ReplayedBatchConsent)
//   - A database that is set back as a whole, with its audit log, looks intact in itself. Receipts that people keep show it, and so
//     does a witness (package audit/witness); a second delivery from it can be opened only by who has kept the case key of the
//     first. (…RolledBackDatabase, …RolledBackDatabaseIsFoundByTheWitness, …IsFoundByASecondInstance)
//   - Who reads the process's memory, a core file or swap after an archival finds no part of the key: core files are forbidden,
//     memory is locked where it may be, and what held a key was wiped, registers and stacks with it (memory.Secret).
//     (…CoreDumpWhileArchivingAndRecovering, …WhenItsProcessorIsTaken) Elliptic curve keys pass through the standard library, whose
//     copies are erased when the garbage collector takes them.
//   - Who records sealed keys today and breaks RSA later opens those whose agents have no hybrid key. A policy can require hybrid
//     keys; agents sign them, so that nobody puts in another. (…BrokenRSADoesNotOpenAHybridShare, …HybridKeyOfAnotherIsSlippedIn,
//     …ProtectionLoweredInTheRecord)
//
// A key that any one agent opens has one message to all agents, in a format that every CMS program reads: owner and policy are
// not bound to it, and each agent can open it alone wherever the record is found. That is what such a policy means.
package escrow

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/escrow/quorum"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/pkcs11"
	"github.com/enrollgate/enrollgate/gateway/store"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// Options configure the escrow.
type Options struct {
	DB *store.DB
	// Secret encrypts exchange keys at rest.
	Secret []byte
	// ExchangeValidity is how long an exchange certificate is handed out; default one week ([MS-WCCE] 3.2.1.4.3.2.15.1).
	ExchangeValidity time.Duration
	// Grace is how long after that its key still opens requests; default two weeks.
	Grace time.Duration
	// ExchangeToken is the PKCS#11 token (RFC 7512) that exchange keys are made in; empty: the database, encrypted.
	ExchangeToken string
	// Policies are tried in this order; the default one comes after them.
	Policies []Policy
	// Retention are the rules by which archived keys are destroyed; without any, only people destroy them.
	Retention []Rule
	Now       func() time.Time
}

// Escrow is the store of archived keys. All methods are safe for concurrent use.
type Escrow struct {
	o      Options
	agents atomic.Pointer[[]Agent] // what Open seals to; Refresh keeps it current

	mu    sync.Mutex     // guards keys, token and rotation
	keys  []*exchangeKey // loaded, newest last
	token *pkcs11.Token  // of ExchangeToken; nil until it is needed
}

// New returns an escrow with its agents and exchange keys loaded.
func New(ctx context.Context, o Options) (*Escrow, error) {
	if o.ExchangeValidity == 0 {
		o.ExchangeValidity = 7 * 24 * time.Hour
	}
	if o.Grace == 0 {
		o.Grace = 14 * 24 * time.Hour
	}
	e := &Escrow{o: o}
	if err := e.Refresh(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Refresh reads what another process may have changed: agents and exchange keys. The gateway calls it every second, so
// that no request waits for the disk to learn who the agents are.
func (e *Escrow) Refresh(ctx context.Context) error {
	agents, err := e.Agents(ctx)
	if err != nil {
		return err
	}
	e.agents.Store(&agents)
	return e.loadKeys(ctx)
}

// Ready returns nil if there is any valid agent, else the error that archival templates are refused with. Whether there are
// enough for a policy, ReadyFor tells.
func (e *Escrow) Ready() error {
	return e.ReadyFor(&Policy{Name: DefaultPolicy, Agents: []string{AllAgents}, Required: 1})
}

// Record is a sealed key on its way into the database.
type Record struct {
	Source      string // "enrollment" or "import"
	Owner       string
	Algorithm   string
	Bits        int
	KeyID       []byte // SHA-256 of the SubjectPublicKeyInfo
	Policy      string
	Required    int // how many agents it takes
	Format      int // FormatCMS or FormatShared
	Recipients  []string
	Sealed      []byte
	Certificate []byte // of imported keys

	blob []byte // the key as the client sent it, while it is sealed
}

// The formats of sealed keys.
const (
	FormatCMS     = 1 // CMS EnvelopedData around the PKCS#8 key: any recipient opens it
	FormatShared  = 2 // quorum.Record
	FormatKeyBlob = 3 // CMS EnvelopedData around a key blob, as AD CS keeps keys ([MS-WCCE] 3.2.2.6.2.1.3)
)

// errEnclosed is the one answer to whatever is wrong with an enclosed key behind the exchange key: who could tell the
// failures apart could decrypt recorded requests step by step.
func errEnclosed(cause error) error {
	return hresult.Wrap(hresult.BadRequestKeyArchival, cause,
		"the enclosed key cannot be opened with an exchange key of this CA, or is not the private key of the request").
		WithFix("enroll again, so that the client fetches the current exchange certificate")
}

// failureTime is longer than opening and proving a key of any size that clients send takes, even on a busy machine. It
// also limits how fast one connection can try.
const failureTime = 100 * time.Millisecond

// waitUntil returns at deadline. A sleep alone ends up to a millisecond late, by an amount that depends on when it began:
// just what has to stay unknown. So the end is waited for on the processor.
func waitUntil(deadline time.Time) {
	time.Sleep(time.Until(deadline) - 2*time.Millisecond)
	for time.Until(deadline) > 0 {
		runtime.Gosched()
	}
}

// Open takes the enclosed private key out of a verified request: decrypts it, proves that it is the private half of the
// request's public key, and seals it to the agents. The key in the clear exists only inside this call, in memory that is
// wiped before it returns.
//
// A refusal takes the same time whatever the reason: it is given failureTime after the call.
func (e *Escrow) Open(ca string, r *wcce.Request, owner Owner) (record *Record, err error) {
	begin := time.Now()
	defer func() {
		if err != nil {
			waitUntil(begin.Add(failureTime))
		}
	}()
	policy, err := e.PolicyFor(owner)
	if err != nil {
		return nil, err
	}
	agents, err := e.validAgents(policy)
	if err != nil {
		return nil, err
	}
	enveloped, err := wcce.ParseEnveloped(r.Archived.Raw)
	if err != nil {
		return nil, errEnclosed(err)
	}
	memory.Secret(func() { record, err = e.take(ca, enveloped, r, owner, policy, agents) })
	return record, err
}

// take is what Open does with the key in the clear.
func (e *Escrow) take(ca string, enveloped *wcce.Enveloped, r *wcce.Request, owner Owner, policy *Policy, agents []quorum.Recipient) (*Record, error) {
	plain, err := e.decrypt(ca, enveloped)
	if err != nil {
		return nil, errEnclosed(err)
	}
	defer wcce.Wipe(plain)
	blob, err := wcce.ParseKeyBlob(plain)
	if err != nil {
		return nil, errEnclosed(err)
	}
	defer blob.Wipe()
	if !blob.Matches(r.CSR.PublicKey) {
		return nil, errEnclosed(errors.New("the enclosed key is another than the request's"))
	}
	keyID := sha256.Sum256(r.CSR.RawSPKI)
	record := &Record{Source: "enrollment", Algorithm: blob.Algorithm, Bits: blob.Bits, KeyID: keyID[:], blob: plain}
	defer func() { record.blob = nil }()
	return record, record.seal(blob.PKCS8, owner.Name, policy, agents)
}

// seal encrypts the key to the policy's agents: to each of them in one CMS message, or in shares where it takes several agents,
// or any agent has a hybrid key, which CMS cannot say.
func (r *Record) seal(pkcs8 []byte, owner string, p *Policy, agents []quorum.Recipient) (err error) {
	r.Owner, r.Policy, r.Required, r.Format = owner, p.Name, p.Required, FormatCMS
	var certs []*x509.Certificate
	for _, a := range agents {
		r.Recipients = append(r.Recipients, Fingerprint(a.Certificate))
		certs = append(certs, a.Certificate)
		if p.Required > 1 || a.Hybrid != nil {
			r.Format = FormatShared
		}
	}
	if r.Format == FormatShared {
		r.Sealed, err = quorum.Seal(pkcs8, quorum.Terms{KeyID: r.KeyID, Owner: owner, Policy: p.Name, Required: p.Required}, agents)
	} else {
		r.Sealed, err = r.sealCMS(pkcs8, certs)
	}
	if err != nil {
		return fmt.Errorf("escrow: seal: %w", err)
	}
	return nil
}

// sealCMS seals the key blob that Windows's tools read, or PKCS#8 where a key has no such form.
func (r *Record) sealCMS(pkcs8 []byte, agents []*x509.Certificate) ([]byte, error) {
	blob := r.blob
	if blob == nil {
		key, err := x509.ParsePKCS8PrivateKey(pkcs8)
		if err != nil {
			return nil, err
		}
		if blob, err = wcce.MarshalKeyBlob(key); err != nil {
			return wcce.Seal(pkcs8, wcce.OIDAES256CBC, true, agents...)
		}
		defer wcce.Wipe(blob)
	}
	r.Format = FormatKeyBlob
	return wcce.Seal(blob, wcce.OIDAES256CBC, true, agents...)
}

// Fingerprint names a certificate: the SHA-256 of its DER in hexadecimal.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Insert writes the record and its audit line. requestID is 0 for imported keys.
func (r *Record) Insert(tx *sql.Tx, now time.Time, requestID int64, actor, owner, subject string) (id int64, err error) {
	recipients, err := json.Marshal(r.Recipients)
	if err != nil {
		return 0, fmt.Errorf("escrow: %w", err)
	}
	request := sql.NullInt64{Int64: requestID, Valid: requestID != 0}
	var serial string
	var notAfter int64
	if r.Certificate != nil {
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return 0, fmt.Errorf("escrow: certificate of the key: %w", err)
		}
		serial, notAfter = cert.SerialNumber.Text(16), cert.NotAfter.UnixMilli()
	}
	err = tx.QueryRow(`INSERT INTO escrow_records (created, request_id, source, owner, subject, key_id, algorithm, bits, recipients, sealed, certificate, policy, required, format,
		serial, not_after) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id`, now.UnixMilli(), request, r.Source, owner, subject, r.KeyID, r.Algorithm, r.Bits, string(recipients), r.Sealed, r.Certificate,
		r.Policy, r.Required, r.Format, serial, notAfter).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("escrow: store record: %w", err)
	}
	if err := insertWords(tx, id, subject); err != nil {
		return 0, err
	}
	event, sealed := audit.KeyArchived, sha256.Sum256(r.Sealed)
	if r.Source == "import" {
		event = audit.KeyImported
	}
	return id, audit.Append(tx, now, actor, event, map[string]any{"record": id, "request": requestID, "owner": owner, "subject": subject, "key_id": hex.EncodeToString(r.KeyID), "recipients": r.Recipients,
		"policy": r.Policy, "required": r.Required, "sealed_sha256": hex.EncodeToString(sealed[:])})
}

// Import seals a key that a user has already, with its certificate, and stores it durably. The caller wipes key.
func (e *Escrow) Import(ctx context.Context, key crypto.PrivateKey, cert *x509.Certificate, owner Owner, actor string) (int64, error) {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return 0, fmt.Errorf("key type %T is not supported", key)
	}
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return 0, errors.New("the private key is not that of the certificate")
	}
	policy, err := e.PolicyFor(owner)
	if err != nil {
		return 0, err
	}
	agents, err := e.validAgents(policy)
	if err != nil {
		return 0, err
	}
	keyID := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	algorithm, bits := DescribeKey(cert.PublicKey)
	record := &Record{Source: "import", Algorithm: algorithm, Bits: bits, KeyID: keyID[:], Certificate: cert.Raw}
	memory.Secret(func() { err = record.sealKey(key, owner.Name, policy, agents) })
	if err != nil {
		return 0, err
	}
	return e.insertImported(ctx, record, cert, actor)
}

func (r *Record) sealKey(key crypto.PrivateKey, owner string, p *Policy, agents []quorum.Recipient) error {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	defer wcce.Wipe(pkcs8)
	return r.seal(pkcs8, owner, p, agents)
}

// DescribeKey names the algorithm of a public key, and its size in bits.
func DescribeKey(pub crypto.PublicKey) (algorithm string, bits int) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return "RSA", k.N.BitLen()
	case *ecdsa.PublicKey:
		return k.Params().Name, k.Params().BitSize
	}
	return fmt.Sprintf("%T", pub), 0
}
