// Package memory keeps what is in the process's memory from getting onto a disk: core files and swap.
package memory

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// ForbidCoreDumps keeps private keys out of core files, and other processes of the same user out of the memory (prctl(2),
// PR_SET_DUMPABLE).
func ForbidCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}

// Lock keeps the memory out of swap: what there is and what comes, each page from its first use on (mlockall(2),
// MCL_ONFAULT). It is an error where the process may not lock as much as it will need.
func Lock() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	// A limit in the middle would end the process when it is reached. Who may raise it (CAP_IPC_LOCK) has none.
	if limit.Cur != math.MaxUint64 && unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: math.MaxUint64, Max: math.MaxUint64}) != nil {
		return fmt.Errorf("lock memory: only %d KiB are allowed; set LimitMEMLOCK=infinity in the systemd unit, or ulimit -l unlimited", limit.Cur/1024)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}
