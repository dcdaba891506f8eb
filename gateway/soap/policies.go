package soap

import "sync/atomic"

// Policies is the answer to GetPolicies ([MS-XCEP] 3.1.4.1.1.2). Numbers are pointers where the schema lets them be
// nil. It must not be changed after it was encoded: the encoding is kept.
type Policies struct {
	ID              string // stable for the policy server, "{…}"
	FriendlyName    string
	NextUpdateHours *uint32
	NotChanged      bool // true: nothing changed since the client's LastUpdate, and all else but the ID is left out
	Policies        []Policy
	CAs             []CA

	encoded atomic.Pointer[[]byte]
}

// Policy is one certificate template as the client sees it ([MS-XCEP] 3.1.4.1.3.1 and following).
type Policy struct {
	OID        OIDRef // the template's own OID, GroupTemplate
	CAs        []int  // indexes into Policies.CAs
	CommonName string // unique in the reply
	Schema     uint32 // 1 to 4

	ValidityPeriodSeconds uint64
	RenewalPeriodSeconds  uint64

	Enroll     bool // may the caller enroll, and
	AutoEnroll bool // by autoenrollment

	PrivateKey    PrivateKeyAttributes
	MajorRevision uint32
	MinorRevision *uint32
	Superseded    []string // common names

	PrivateKeyFlags  *uint32
	SubjectNameFlags *uint32
	EnrollmentFlags  *uint32
	GeneralFlags     *uint32

	HashAlgorithm *OIDRef // GroupHash
	RA            *RARequirements
	Archival      *KeyArchival
	Extensions    []Extension
}

// PrivateKeyAttributes say how the client makes the key.
type PrivateKeyAttributes struct {
	MinimalKeyLength uint32
	KeySpec          *uint32 // 1 exchange, 2 signature
	KeyUsage         *uint32
	Permissions      string  // SDDL
	Algorithm        *OIDRef // GroupPublicKey
	Providers        []string
}

// RARequirements are the additional signatures that a request needs.
type RARequirements struct {
	Signatures uint32
	EKUs       []OIDRef // GroupEKU
	Policies   []OIDRef // GroupPolicy
}

// KeyArchival is how the client encrypts the private key that it sends to be archived.
type KeyArchival struct {
	Algorithm OIDRef // GroupEncryption
	KeyLength uint32
}

// Extension is a certificate extension that the client puts into its request.
type Extension struct {
	OID      OIDRef // GroupExtension
	Critical bool
	Value    []byte // DER
}

// CA is a certification authority that offers policies.
type CA struct {
	URIs             []CAURI
	Certificate      []byte // DER
	EnrollPermission bool
}

// CAURI is one address of a CA. Clients take the lowest priority first.
type CAURI struct {
	ClientAuthentication int // AuthKerberos and its like
	URI                  string
	Priority             *uint32
	RenewalOnly          bool
}

// Groups of OIDs ([MS-XCEP] 3.1.4.1.3.16). A wrong group breaks the client's look-up.
const (
	GroupHash       = 1
	GroupEncryption = 2
	GroupPublicKey  = 3
	GroupSigning    = 4
	GroupRDN        = 5
	GroupExtension  = 6
	GroupEKU        = 7
	GroupPolicy     = 8
	GroupTemplate   = 9
)

// OIDRef is an OID with the group that the client looks it up in and a name for people. On the wire it is a number,
// which refers to a table of all OIDs in the reply.
type OIDRef struct {
	Value string
	Group uint32
	Name  string
}

// oidTable numbers the OIDs of a reply in the order of their first use.
type oidTable struct {
	index map[oidKey]int
	list  []OIDRef
}

type oidKey struct {
	value string
	group uint32
}

func (t *oidTable) ref(o OIDRef) uint64 {
	key := oidKey{o.Value, o.Group}
	i, ok := t.index[key]
	if !ok {
		if t.index == nil {
			t.index = map[oidKey]int{}
		}
		i = len(t.list)
		t.index[key], t.list = i, append(t.list, o)
	} else if t.list[i].Name == "" {
		t.list[i].Name = o.Name
	}
	return uint64(i)
}
