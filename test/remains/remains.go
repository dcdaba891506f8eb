// Package remains looks for parts of private keys where none may be left: in the memory of a process, and in files.
package remains

import (
	"bufio"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Parts are what to look for: eight octets out of each prime and of the private exponent of RSA keys, in both orders, which are those
// of DER and of Go's numbers and Windows's blobs.
type Parts struct {
	first [1 << 16]bool // the first two octets of any part
	names map[uint64]string
}

// Of are the parts of keys.
func Of(keys []*rsa.PrivateKey) *Parts {
	s := &Parts{names: map[uint64]string{}}
	for i, key := range keys {
		for name, number := range map[string][]byte{"p": key.Primes[0].Bytes(), "q": key.Primes[1].Bytes(), "d": key.D.Bytes()} {
			for _, at := range []int{8, len(number) / 2, len(number) - 16} {
				part := slices.Clone(number[at : at+8])
				for range 2 {
					word := binary.LittleEndian.Uint64(part)
					s.first[uint16(word)], s.names[word] = true, fmt.Sprintf("key %d, %s at %d", i, name, at)
					slices.Reverse(part)
				}
			}
		}
	}
	return s
}

// In counts the parts in a text, by name.
func (s *Parts) In(text []byte, found map[string]int) {
	for i := 0; i+8 <= len(text); i++ {
		if s.first[binary.LittleEndian.Uint16(text[i:])] {
			if name, ok := s.names[binary.LittleEndian.Uint64(text[i:])]; ok {
				found[name]++
			}
		}
	}
}

// Memory reads all memory that a process can write to, which is what a core file has of it, while the process is stopped. total is in
// octets.
func (s *Parts) Memory(t testing.TB, pid int, found map[string]int) (total int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	part := make([]byte, 1<<22)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err1 := strconv.ParseInt(from, 16, 64)
		end, err2 := strconv.ParseInt(to, 16, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		for at := begin; at < end; at += int64(len(part)) {
			n, _ := mem.ReadAt(part[:min(int64(len(part)), end-at)], at) // guard pages cannot be read
			s.In(part[:n], found)
			total += n
		}
	}
	return total
}

// Files looks at everything below folders, and for core files there.
func (s *Parts) Files(t testing.TB, dirs ...string) {
	t.Helper()
	files := 0
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			found := map[string]int{}
			s.In(text, found)
			if len(found) > 0 {
				t.Errorf("%s has %d parts of private keys", path, len(found))
			}
			if strings.HasPrefix(d.Name(), "core") {
				t.Errorf("there is a core file: %s", path)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if files < 2 {
		t.Errorf("only %d files were looked at", files)
	}
}
