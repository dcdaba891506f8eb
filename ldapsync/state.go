package ldapsync

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/enrollgate/enrollgate/templates"
)

// The saved file is what the newest snapshot was made from, so that a gateway that starts while no controller answers
// goes on from there. Its first line is a stateHeader, its second a savedState, both JSON. Octets are in base64: DNs and
// values are kept as they came, and go through reading.build like those from a controller.
//
// The hash in the header finds damage. It is no signature: who may write the file decides what the templates say. Only
// its mode (0600) and the folder's protect it, and so a file that others may write is not used.
const (
	stateFormat  = "enrollgate directory"
	stateVersion = 1
	maxState     = 64 << 20         // octets; 500 templates take 3 MiB
	saveEvery    = time.Minute      // how often the file is written only because a controller confirmed what is in it
	maxClockStep = 10 * time.Minute // a file from further in the future would never grow old
)

type stateHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	SHA256  string `json:"sha256"` // of the second line without its line break
}

type savedState struct {
	Source      []string      `json:"source"` // how the directory was found: the domain and the servers
	Controller  []byte        `json:"controller"`
	Invocation  string        `json:"invocationId"`
	USN         int64         `json:"usn"`
	ConfigDN    []byte        `json:"configurationNamingContext"`
	ForestDN    []byte        `json:"rootDomainNamingContext"`
	Taken       time.Time     `json:"taken"`
	Checked     time.Time     `json:"checked"` // when a controller last confirmed it
	Controllers controllers   `json:"controllers"`
	Domains     []savedObject `json:"domains"`
	Objects     []savedObject `json:"objects"`
}

type savedObject struct {
	DN         []byte              `json:"dn"`
	Attributes map[string][][]byte `json:"attributes"`
}

func savedObjects(objects []object) []savedObject {
	out := make([]savedObject, len(objects))
	for i, o := range objects {
		out[i] = savedObject{[]byte(o.dn), o.attributes}
	}
	return out
}

func restoredObjects(saved []savedObject) []object {
	out := make([]object, len(saved))
	for i, o := range saved {
		out[i] = object{string(o.DN), templates.Attributes(o.Attributes)}
	}
	return out
}

// source is what must not be another when a file is used: the settings that say which forest is meant.
func (c Config) source() []string {
	out := []string{}
	for _, s := range c.Servers {
		out = append(out, strings.ToLower(s))
	}
	if c.Domain != "" {
		out = append(out, strings.ToLower(c.Domain))
	}
	return out
}

// encode makes the file's contents.
func (s *savedState) encode() ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	head, err := json.Marshal(stateHeader{stateFormat, stateVersion, hex.EncodeToString(sum[:])})
	if err != nil {
		return nil, err
	}
	return slices.Concat(head, []byte("\n"), body, []byte("\n")), nil
}

// decodeState reads a file's contents, and refuses what this version did not write as it is.
func decodeState(b []byte) (*savedState, error) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	var h stateHeader
	if err := json.Unmarshal(head, &h); err != nil || !ok || h.Format != stateFormat {
		return nil, errors.New("not a saved directory")
	}
	if h.Version != stateVersion {
		return nil, fmt.Errorf("format version %d, this program knows %d", h.Version, stateVersion)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if sum := sha256.Sum256(body); h.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, errors.New("damaged: its checksum is wrong")
	}
	s := &savedState{}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if len(s.ConfigDN) == 0 || len(s.Objects) == 0 || s.Taken.IsZero() || s.Checked.Before(s.Taken) {
		return nil, errors.New("incomplete")
	}
	return s, nil
}

// readState reads and checks the file.
func readState(path string, source []string, now time.Time) (*savedState, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a file")
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("others may write it (mode %o)", info.Mode().Perm())
	case info.Size() > maxState:
		return nil, fmt.Errorf("%d octets, at most %d are read", info.Size(), maxState)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, err
	}
	s, err := decodeState(b)
	if err != nil {
		return nil, err
	}
	if s.Checked.After(now.Add(maxClockStep)) {
		return nil, fmt.Errorf("it is from the future, %s: check this machine's clock", s.Checked.Format(time.RFC3339))
	}
	if !slices.ContainsFunc(s.Source, func(known string) bool { return slices.Contains(source, known) }) {
		return nil, fmt.Errorf("it is of another directory, read from %s", strings.Join(s.Source, ", "))
	}
	return s, nil
}

// load puts the saved directory in place. A file that cannot be used is as good as none: the first answer of a
// controller replaces it.
func (d *Directory) load() {
	if d.config.StateFile == "" {
		return
	}
	s, err := readState(d.config.StateFile, d.config.source(), time.Now())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.log.WithError(err).WithField("file", d.config.StateFile).Warn("the saved directory is not used")
		}
		return
	}
	r := &reading{controller: string(s.Controller), invocation: s.Invocation, usn: s.USN, configDN: string(s.ConfigDN), forestDN: string(s.ForestDN),
		taken: s.Checked, domains: restoredObjects(s.Domains), objects: restoredObjects(s.Objects)}
	for id, known := range s.Controllers {
		d.controllers[id] = known
	}
	d.seen.reading, d.seen.versions, d.checked, d.saved = r, r.versions(), s.Checked, s.Checked
	snapshot := r.build()
	d.snapshot.Store(snapshot)
	d.log.WithField("controller", snapshot.Controller).WithField("templates", len(snapshot.Templates)).
		WithField("age", time.Since(s.Checked).Round(time.Second).String()).Info("directory loaded from the saved file")
}

// save writes the newest reading, if it is new or was confirmed a minute after the file was written. It belongs to Run: a
// command that only looks, perhaps as another user, leaves the service's file alone.
func (d *Directory) save(last bool) {
	if d.config.StateFile == "" {
		return
	}
	d.reading.Lock()
	r, unsaved := d.seen.reading, d.seen.unsaved
	known := make(controllers, len(d.controllers))
	for id, c := range d.controllers {
		known[id] = c
	}
	d.reading.Unlock()
	d.mu.Lock()
	checked := d.checked
	d.mu.Unlock()
	if r == nil || !unsaved && !(checked.Sub(d.saved) >= saveEvery || last && checked.After(d.saved)) {
		return
	}
	s := &savedState{Source: d.config.source(), Controller: []byte(r.controller), Invocation: r.invocation, USN: r.usn, ConfigDN: []byte(r.configDN),
		ForestDN: []byte(r.forestDN), Taken: r.taken, Checked: later(checked, r.taken), Controllers: known, Domains: savedObjects(r.domains), Objects: savedObjects(r.objects)}
	b, err := s.encode()
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("%d octets, at most %d would be read again", len(b), maxState)
	}
	if err == nil {
		err = writeFile(d.config.StateFile, b)
	}
	if err != nil {
		if d.saveErr == nil || d.saveErr.Error() != err.Error() {
			d.log.WithError(err).WithField("file", d.config.StateFile).Error("cannot save the directory: a restart would need a domain controller")
		}
		d.saveErr = err
		return
	}
	d.saved, d.saveErr = checked, nil
	d.reading.Lock()
	if d.seen.reading == r {
		d.seen.unsaved = false
	}
	d.reading.Unlock()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// writeFile replaces a file: after a crash there is the old one or the new one, whole. What a crash leaves behind has
// the same name the next time, and is overwritten.
func writeFile(path string, b []byte) (err error) {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(0o600) // also where it was there already
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(next)
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
