package doctor

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/enrollgate/enrollgate/gateway"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"golang.org/x/sys/unix"
)

// errUndo ends a write that is not to happen.
var errUndo = errors.New("only a trial")

// database opens what the gateway opens, writes a row, takes it back, and writes a file beside it.
func database(ctx context.Context, p *patient) ([]Finding, error) {
	what := p.cfg.Data
	if p.cfg.Database.URL != "" {
		what = "PostgreSQL"
	}
	if p.gatewayErr != nil {
		return []Finding{bad(what, "correct what the message names; as the gateway's own account: enrollgate config check", "the gateway cannot be opened: %v", p.gatewayErr)}, nil
	}
	err := p.gateway.DB.Write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO revocations (ca, serial, reason, revoked) VALUES ('doctor', 'trial', 0, 0)"); err != nil {
			return err
		}
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		return []Finding{bad(what, "give the gateway's account write access to the database", "the database takes no writes: %v", err)}, nil
	}
	if err := tryFile(p.cfg.Data); err != nil {
		return []Finding{bad(p.cfg.Data, "give the gateway's account write access to the folder, and make room", "no file can be written: %v", err)}, nil
	}
	return []Finding{well(what, "it takes writes")}, nil
}

func tryFile(dir string) error {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte("x"), 4096))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// running asks the gateway on this machine whether it can decide.
func running(ctx context.Context, p *patient) ([]Finding, error) {
	if p.cfg.Listen.HTTPS == "off" {
		return nil, notMade{"listen.https is off: nothing can be asked"}
	}
	if err := gateway.CheckHealth(ctx, p.cfg); err != nil {
		return []Finding{bad(p.cfg.Listen.HTTPS, "systemctl start enrollgate, and see journalctl -u enrollgate for what it says", "%v", err)}, nil
	}
	return []Finding{well(p.cfg.Listen.HTTPS, "it runs on this machine and can decide")}, nil
}

// Less free space than this needs attention.
const (
	leastFree    = 1 << 30
	leastPercent = 5
)

func disk(_ context.Context, p *patient) ([]Finding, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(p.cfg.Data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", p.cfg.Data, err)
	}
	free, all := s.Bavail*uint64(s.Bsize), max(s.Blocks*uint64(s.Bsize), 1)
	text := fmt.Sprintf("%d MiB are free, %d %%", free>>20, free*100/all)
	switch {
	case free < leastFree || free*100/all < leastPercent:
		return []Finding{bad(p.cfg.Data, "make room: with a full disk nothing is archived and nothing issued", "%s", text)}, nil
	case s.Files > 0 && s.Ffree*100/s.Files < leastPercent:
		return []Finding{bad(p.cfg.Data, "delete files: with no inode left nothing can be written", "%d of %d inodes are free", s.Ffree, s.Files)}, nil
	}
	return []Finding{well(p.cfg.Data, "%s", text)}, nil
}

// memoryOf looks at what might bring keys from the memory onto a disk: of the gateway that runs, or else of this process.
func memoryOf(context.Context, *patient) ([]Finding, error) {
	var out []Finding
	if pid := servicePID(); pid != 0 {
		out = append(out, memoryOfProcess(pid))
	} else if err := memory.ForbidCoreDumps(); err != nil {
		out = append(out, bad("core dumps", "allow the process prctl(PR_SET_DUMPABLE)", "%v", err))
	} else {
		out = append(out, well("core dumps", "off, in this process; a running gateway was not found"))
	}
	if memory.Erases {
		out = append(out, well("memory", "what private keys leave in it is erased"))
	} else {
		out = append(out, bad("memory", "build with GOEXPERIMENT=runtimesecret, as make does", "parts of private keys may stay in the process's memory"))
	}
	swap, err := swaps()
	switch lock := memory.Lock(); {
	case err != nil:
		return out, err
	case swap == 0:
		out = append(out, well("swap", "the machine has none"))
	case lock != nil:
		out = append(out, bad("swap", "set LimitMEMLOCK=infinity in the systemd unit, or switch swap off, or encrypt it", "keys may get into swap: %v", lock))
	default:
		out = append(out, well("swap", "memory is locked"))
	}
	return out, nil
}

// servicePID finds the gateway that runs with this program; 0 where there is none, or it cannot be seen.
func servicePID() int {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0
	}
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range entries {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		text, err := os.ReadFile(path)
		exe, _ := os.Readlink(filepath.Join(filepath.Dir(path), "exe"))
		if err == nil && pid != os.Getpid() && strings.TrimSuffix(exe, " (deleted)") == own && strings.Contains(string(text), "\x00serve\x00") {
			return pid
		}
	}
	return 0
}

// memoryOfProcess reads its limit for core files (proc(5)).
func memoryOfProcess(pid int) Finding {
	subject := "core dumps"
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return unknown(subject, "process %d cannot be looked at: %v", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			if fields := strings.Fields(rest); len(fields) > 1 && fields[0] == "0" {
				return well(subject, "off, in process %d", pid)
			}
			return bad(subject, "set LimitCORE=0 in the systemd unit", "process %d may leave its memory in a core file", pid)
		}
	}
	return unknown(subject, "process %d: no limit for core files", pid)
}

// swaps counts the places that memory is swapped to.
func swaps() (int, error) {
	text, err := os.ReadFile("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return max(len(strings.Split(strings.TrimSpace(string(text)), "\n"))-1, 0), err
}
