package ldapsync

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// savedBy runs a directory until it has written its file, and returns the last snapshot's OIDs.
func savedBy(t *testing.T, config Config, dcs ...*fakeDC) {
	t.Helper()
	d := fakeForest(t, config, nil, dcs...)
	stop := run(t, d)
	eventually(t, "the saved file", func() bool { _, err := os.Stat(config.StateFile); return err == nil })
	stop()
}

func TestARestartWithoutAControllerServesTheLastGoodState(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	before := fakeForest(t, config, nil, a)
	stop := run(t, before)
	eventually(t, "the saved file", func() bool { _, err := os.Stat(config.StateFile); return err == nil })
	a.set(func(a *fakeDC) { a.usn++; a.objects = append(a.objects, fakeOID("1.2.4", "1001")) })
	eventually(t, "the new state", func() bool { return oids(before) == "1.2.3 1.2.4" })
	eventually(t, "the new state in the file", func() bool { return oids(fakeForest(t, config, nil, a)) == "1.2.3 1.2.4" })
	eventually(t, "a confirmation without a change", func() bool { s := before.Status(); return s.Checked.After(s.Taken) })
	a.die()
	eventually(t, "an error", func() bool { return before.Status().Err != nil })
	stop()

	log := &captured{}
	d := fakeForest(t, config, log, a)
	s, old, status := d.Snapshot(), before.Snapshot(), before.Status()
	if s == nil {
		t.Fatalf("no snapshot: %s", log)
	}
	if !s.Taken.Equal(status.Checked) || !d.Status().Checked.Equal(status.Checked) || d.Status().Age <= 0 || d.Status().Server != "" {
		t.Errorf("taken %v, confirmed last at %v, status %+v", s.Taken, status.Checked, d.Status())
	}
	got, want := *s, *old
	got.Taken, want.Taken = time.Time{}, time.Time{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("after the restart %+v, before %+v", got, want)
	}
	run(t, d)
	eventually(t, "an error", func() bool { return d.Status().Err != nil })
	if d.Snapshot() != s || oids(d) != "1.2.3 1.2.4" {
		t.Error("the state is gone, or has become younger, without an answer of a controller")
	}
	a.revive()
	eventually(t, "a confirmed state", func() bool { return d.Snapshot().Taken.After(s.Taken) && d.Status().Err == nil })
	if info, err := os.Stat(config.StateFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", info.Mode(), err)
	}
}

func TestASavedFileThatIsNotAsItWasWrittenIsIgnoredWithAReason(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	savedBy(t, config, a)
	good, err := os.ReadFile(config.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	rewritten := func(change func(s *savedState)) []byte {
		s, err := decodeState(good)
		if err != nil {
			t.Fatal(err)
		}
		change(s)
		b, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	flipped := bytes.Clone(good)
	flipped[len(good)/2] ^= 1
	for name, tt := range map[string]struct {
		b    []byte
		mode os.FileMode
		want string
	}{
		"as written":                  {good, 0o600, ""},
		"written anew":                {rewritten(func(*savedState) {}), 0o600, ""},
		"empty":                       {nil, 0o600, "not a saved directory"},
		"of another program":          {[]byte("{\"hello\":1}\n{}\n"), 0o600, "not a saved directory"},
		"cut":                         {good[:len(good)-20], 0o600, "checksum"},
		"with a flipped bit":          {flipped, 0o600, "checksum"},
		"with something after it":     {append(bytes.Clone(good), '\n'), 0o600, "checksum"},
		"of a later version":          {bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1), 0o600, "format version 2"},
		"that others may write":       {good, 0o620, "others may write"},
		"from the future":             {rewritten(func(s *savedState) { s.Checked = time.Now().Add(time.Hour) }), 0o600, "from the future"},
		"confirmed before it is read": {rewritten(func(s *savedState) { s.Checked = s.Taken.Add(-time.Hour) }), 0o600, "incomplete"},
		"without objects":             {rewritten(func(s *savedState) { s.Objects = nil }), 0o600, "incomplete"},
		"of another forest":           {rewritten(func(s *savedState) { s.Source = []string{"ldap://dc.elsewhere.test"} }), 0o600, "another directory"},
		"of 65 MiB":                   {make([]byte, maxState+1), 0o600, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			config.StateFile = filepath.Join(t.TempDir(), "directory.json")
			if err := errors.Join(os.WriteFile(config.StateFile, tt.b, 0o600), os.Chmod(config.StateFile, tt.mode)); err != nil {
				t.Fatal(err)
			}
			log := &captured{}
			d := fakeForest(t, config, log, a)
			if (d.Snapshot() != nil) != (tt.want == "") || !strings.Contains(log.String(), tt.want) {
				t.Errorf("snapshot %v, log %s", d.Snapshot(), log)
			}
			if tt.want != "" && log.count("the saved directory is not used") != 1 {
				t.Errorf("log: %s", log)
			}
			// Nothing of it is in the way of a controller.
			if err := d.Refresh(t.Context()); err != nil || oids(d) != "1.2.3" {
				t.Errorf("%s, %v", oids(d), err)
			}
		})
	}
}

func TestACommandThatOnlyReadsLeavesTheSavedFileAlone(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	if err := fakeForest(t, config, nil, a).Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(config.StateFile); err == nil {
		t.Error("the file is written")
	}
}

func TestAFileThatCannotBeWrittenIsSaidOnceAndStopsNothing(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "missing", "directory.json")
	log := &captured{}
	d := fakeForest(t, config, log, a)
	run(t, d)
	eventually(t, "an error in the log", func() bool { return log.count("cannot save the directory") > 0 })
	a.set(func(a *fakeDC) { a.usn++; a.objects = append(a.objects, fakeOID("1.2.4", "1001")) })
	eventually(t, "a new state", func() bool { return oids(d) == "1.2.3 1.2.4" })
	time.Sleep(100 * time.Millisecond)
	if n := log.count("cannot save the directory"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// A crash while the file is written leaves a part of the new one beside the old one.
func TestWhatACrashLeavesBesideTheFileDoesNoHarm(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	savedBy(t, config, a)
	if err := os.WriteFile(config.StateFile+".new", bytes.Repeat([]byte("x"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := oids(fakeForest(t, config, nil, a)); got != "1.2.3" {
		t.Errorf("loaded %q", got)
	}
	if err := os.Remove(config.StateFile); err != nil {
		t.Fatal(err)
	}
	savedBy(t, config, a)
	if info, err := os.Stat(config.StateFile); err != nil || info.Mode().Perm() != 0o600 || info.Size() > 1<<19 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestAUSNRollbackIsNoticedAcrossARestart(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	savedBy(t, config, a)
	a.set(func(a *fakeDC) { a.usn -= 10 })
	log := &captured{}
	d := fakeForest(t, config, log, a)
	stop := run(t, d)
	eventually(t, "USN rollback", func() bool { return d.Status().Rollback == "a.fake.test" })
	stop()
	if log.count("USN rollback") != 1 {
		t.Errorf("log: %s", log)
	}
}

// A clean end writes when the state was confirmed last, so that the next start has the whole of max_age.
func TestTheEndOfAServiceSavesTheLastConfirmation(t *testing.T) {
	a := newFakeDC(t, "a.fake.test")
	config := quick()
	config.StateFile = filepath.Join(t.TempDir(), "directory.json")
	d := fakeForest(t, config, nil, a)
	stop := run(t, d)
	eventually(t, "a confirmation after the file", func() bool {
		s, err := readState(config.StateFile, d.config.source(), time.Now())
		return err == nil && d.Status().Checked.Sub(s.Checked) > 50*time.Millisecond
	})
	stop()
	s, err := readState(config.StateFile, d.config.source(), time.Now())
	if err != nil || !s.Checked.Equal(d.Status().Checked) {
		t.Errorf("saved %+v, last confirmation %v, %v", s, d.Status().Checked, err)
	}
}

func FuzzDecodeState(f *testing.F) {
	s := &savedState{Source: []string{"x"}, ConfigDN: []byte("CN=x"), Taken: time.Unix(1, 0), Checked: time.Unix(2, 0),
		Objects: []savedObject{{DN: []byte("CN=a"), Attributes: map[string][][]byte{"cn": {{0xff}}}}}}
	b, err := s.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if s, err := decodeState(b); err == nil {
			r := &reading{objects: restoredObjects(s.Objects), domains: restoredObjects(s.Domains)}
			r.build()
		}
	})
}
