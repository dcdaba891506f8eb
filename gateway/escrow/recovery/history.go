package recovery

import (
	"crypto"
	"errors"
	"slices"
	"strings"
	"time"
)

// Keys of one person, and the cases about them, are recovered together: one file with the case keys stays with who opened the
// cases, and one code stands for all of them.

// CaseFiles is what stays on the machine of who opened cases, until the keys are fetched. It is secret.
type CaseFiles struct {
	Cases []CaseFile `json:"cases"`
}

// Wipe overwrites the secrets.
func (f *CaseFiles) Wipe() {
	for i := range f.Cases {
		f.Cases[i].Wipe()
	}
}

// Code is the code of all statements.
func (f *CaseFiles) Code() string {
	var all []*Statement
	for i := range f.Cases {
		all = append(all, &f.Cases[i].Statement)
	}
	return Code(all)
}

// Files is what an agent needs to approve several cases.
type Files struct {
	Cases []File `json:"cases"`
}

// Statements are those of the cases.
func (f *Files) Statements() []*Statement {
	var all []*Statement
	for i := range f.Cases {
		all = append(all, &f.Cases[i].Statement)
	}
	return all
}

// Certificates are those of the agents that any of the keys is sealed to, DER.
func (f *Files) Certificates() (all [][]byte) {
	for _, c := range f.Cases {
		all = append(all, c.Agents...)
	}
	return all
}

// Approve approves each case whose key the agent has a part of, by the certificate that the record names. The code is that of
// all cases. without are the cases that the agent has no part of; it is an error where that is all of them.
func (f *Files) Approve(code string, key crypto.Decrypter, now time.Time) (done *Approvals, without []int64, err error) {
	if !codeIs(Code(f.Statements()), code) {
		return nil, nil, ErrCode
	}
	done = &Approvals{}
	for i := range f.Cases {
		c := &f.Cases[i]
		agent, err := CertificateOf(c.Agents, key.Public())
		if err != nil {
			without = append(without, c.Case)
			continue
		}
		a, err := Approve(c, c.Statement.Code(), agent, key, now)
		if err != nil {
			return nil, nil, err
		}
		done.Approvals = append(done.Approvals, *a)
	}
	if len(done.Approvals) == 0 {
		return nil, nil, errors.New("the key is that of no agent that an archived key of these cases is sealed to")
	}
	return done, without, nil
}

// Approvals is what an agent makes of Files.
type Approvals struct {
	Approvals []Approval `json:"approvals"`
}

// Code is the code of statements, whatever their order. That of one is its own.
func Code(all []*Statement) string {
	if len(all) == 1 {
		return all[0].Code()
	}
	var hashes []string
	for _, s := range all {
		hashes = append(hashes, string(s.Hash()))
	}
	slices.Sort(hashes)
	return codeOf(digest("enrollgate recovery statements 1", []byte(strings.Join(hashes, ""))))
}
