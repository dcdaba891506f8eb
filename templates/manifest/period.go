package manifest

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ticks in a unit: an interval counts 100 ns.
const second = 10_000_000

// units are what a duration is written in. A year has 365 days and a month 30, as in the Windows console.
var units = []struct {
	name  string
	ticks uint64
}{
	{"y", 365 * 86400 * second}, {"mo", 30 * 86400 * second}, {"w", 7 * 86400 * second}, {"d", 86400 * second},
	{"h", 3600 * second}, {"min", 60 * second}, {"s", second}, {"tick", 1},
}

// periodCodec is for pKIExpirationPeriod and pKIOverlapPeriod ([MS-CRTD] 2.13, 2.14): 8 octets, little-endian, a negative number of
// 100 ns. In YAML: 1y, 6w, 90d, 8h, or several together: 1d12h.
var periodCodec = codec{
	read: func(values [][]byte) any {
		s, _ := single(values)
		if len(s) != 8 {
			return nil
		}
		n := int64(binary.LittleEndian.Uint64([]byte(s)))
		if n > 0 || n == math.MinInt64 {
			return nil
		}
		return duration(uint64(-n))
	},
	write: func(n node) ([][]byte, error) {
		s, err := n.scalar()
		if err != nil {
			return nil, err
		}
		ticks, err := parseDuration(s)
		if err != nil {
			return nil, n.fail("%v", err)
		}
		return [][]byte{binary.LittleEndian.AppendUint64(nil, uint64(-int64(ticks)))}, nil
	},
}

// duration writes ticks in one unit where that is exact, else in days and what is smaller. It leaves months to people.
func duration(ticks uint64) string {
	if ticks == 0 {
		return "0d"
	}
	for _, u := range units {
		if u.name != "mo" && ticks%u.ticks == 0 && (u.name != "tick" || ticks < second) {
			return fmt.Sprintf("%d%s", ticks/u.ticks, u.name)
		}
		if u.name == "h" {
			break
		}
	}
	var b strings.Builder
	for _, u := range units[3:] {
		if n := ticks / u.ticks; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			ticks %= u.ticks
		}
	}
	return b.String()
}

func parseDuration(s string) (uint64, error) {
	wrong := fmt.Errorf("%q is not a duration: write 1y, 6w, 90d, 8h or 1d12h (y, mo, w, d, h, min, s)", s)
	var total uint64
	for rest := s; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseUint(rest[:digits], 10, 63)
		if err != nil {
			return 0, wrong
		}
		rest = rest[digits:]
		name := rest
		if i := strings.IndexAny(rest, "0123456789"); i >= 0 {
			name = rest[:i]
		}
		rest = rest[len(name):]
		ticks := uint64(0)
		for _, u := range units {
			if u.name == name {
				ticks = u.ticks
			}
		}
		if ticks == 0 {
			return 0, wrong
		}
		if n > (math.MaxInt64-total)/ticks {
			return 0, fmt.Errorf("%q is longer than the directory can store", s)
		}
		total += n * ticks
	}
	if s == "" {
		return 0, wrong
	}
	return total, nil
}
