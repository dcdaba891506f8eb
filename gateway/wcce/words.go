package wcce

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// words is a number that is secret, as 64-bit words, the lowest first. math/big is no place for it: its divisions leave copies
// of the divisor in buffers that are used again, and cannot be wiped. What these functions allocate they wipe, but for what they
// return.
type words []uint64

// wordsOf reads a big-endian number.
func wordsOf(b []byte) words {
	out := make(words, (len(b)+7)/8)
	for i := range out {
		end := len(b) - 8*i
		if end >= 8 {
			out[i] = binary.BigEndian.Uint64(b[end-8:])
			continue
		}
		for _, octet := range b[:end] {
			out[i] = out[i]<<8 | uint64(octet)
		}
	}
	return out
}

// bytes writes a big-endian number of size octets, which it must fit into.
func (x words) bytes(size int) []byte {
	out := make([]byte, size)
	for i := range size {
		if w := i / 8; w < len(x) {
			out[size-1-i] = byte(x[w] >> (8 * (i % 8)))
		}
	}
	return out
}

// trim is x without leading zeros: the same memory.
func (x words) trim() words {
	for len(x) > 0 && x[len(x)-1] == 0 {
		x = x[:len(x)-1]
	}
	return x
}

func (x words) isOne() bool {
	t := x.trim()
	return len(t) == 1 && t[0] == 1
}

func (x words) equal(y words) bool { return slices.Equal(x.trim(), y.trim()) }

func (x words) less(y words) bool {
	a, b := x.trim(), y.trim()
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	for i := len(a) - 1; i >= 0; i-- {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// mul is x·y.
func (x words) mul(y words) words {
	out := make(words, len(x)+len(y))
	for i, a := range x {
		var carry uint64
		for j, b := range y {
			high, low := bits.Mul64(a, b)
			var c uint64
			low, c = bits.Add64(low, carry, 0)
			high += c
			out[i+j], c = bits.Add64(out[i+j], low, 0)
			carry = high + c
		}
		out[i+len(y)] = carry
	}
	return out
}

// minusOne is x−1 for x > 0.
func (x words) minusOne() words {
	out := slices.Clone(x)
	for i := range out {
		out[i]--
		if out[i] != ^uint64(0) {
			break
		}
	}
	return out
}

// subtract is x−y in place, for y ≤ x.
func (x words) subtract(y words) {
	var borrow uint64
	for i := range x {
		var b uint64
		if i < len(y) {
			b = y[i]
		}
		x[i], borrow = bits.Sub64(x[i], b, borrow)
	}
}

// mod is x mod m for m > 0 (Knuth, The Art of Computer Programming, volume 2, 4.3.1, algorithm D).
func (x words) mod(m words) words {
	m = m.trim()
	n := len(m)
	if n == 1 {
		var rest uint64
		for _, w := range slices.Backward(x) {
			_, rest = bits.Div64(rest, w, m[0])
		}
		return words{rest}
	}
	shift := uint(bits.LeadingZeros64(m[n-1]))
	v, u := make(words, n), make(words, max(len(x), n)+1)
	defer clear(v)
	defer clear(u)
	shiftLeft(v, m, shift)
	shiftLeft(u, x, shift)
	for j := len(u) - n - 1; j >= 0; j-- {
		u[j : j+n+1].reduce(v)
	}
	out := make(words, n)
	for i := range out { // u[n] is zero
		out[i] = u[i]>>shift | u[i+1]<<(64-shift)
	}
	return out
}

// shiftLeft sets out to x·2^shift, shift < 64.
func shiftLeft(out, x words, shift uint) {
	var carry uint64
	for i := range out {
		var w uint64
		if i < len(x) {
			w = x[i]
		}
		out[i] = w<<shift | carry
		carry = w >> (64 - shift)
	}
}

// reduce subtracts from u, which has one word more than v and is less than v·2^64, as often v as it can. The highest bit of v
// is set.
func (u words) reduce(v words) {
	n := len(v)
	q := ^uint64(0)
	if u[n] < v[n-1] {
		var rest uint64
		q, rest = bits.Div64(u[n], u[n-1], v[n-1])
		high, low := bits.Mul64(q, v[n-2])
		for high > rest || high == rest && low > u[n-2] {
			q--
			before := rest
			if rest += v[n-1]; rest < before {
				break
			}
			high, low = bits.Mul64(q, v[n-2])
		}
	}
	var carry, borrow uint64
	for i, w := range v {
		high, low := bits.Mul64(q, w)
		var c uint64
		low, c = bits.Add64(low, carry, 0)
		carry = high + c
		u[i], borrow = bits.Sub64(u[i], low, borrow)
	}
	u[n], borrow = bits.Sub64(u[n], carry, borrow)
	for borrow != 0 { // q was one too high, at most two
		var c uint64
		for i, w := range v {
			u[i], c = bits.Add64(u[i], w, c)
		}
		u[n], c = bits.Add64(u[n], 0, c)
		borrow -= c
	}
}

// divide divides by a small number in place, without remainder.
func (x words) divide(by uint64) {
	var rest uint64
	for i := len(x) - 1; i >= 0; i-- {
		x[i], rest = bits.Div64(rest, x[i], by)
	}
}

// half divides by two in place; top is the bit above.
func (x words) half(top uint64) {
	for i := range x {
		next := top
		if i+1 < len(x) {
			next = x[i+1]
		}
		x[i] = x[i]>>1 | next<<63
	}
}

// add is x+y in place, for a y that is not longer; the carry is returned.
func (x words) add(y words) (carry uint64) {
	for i := range x {
		var b uint64
		if i < len(y) {
			b = y[i]
		}
		x[i], carry = bits.Add64(x[i], b, carry)
	}
	return carry
}

// inverse is 1/x mod m for an odd m; ok is false where there is none (right-shift binary algorithm).
func (x words) inverse(m words) (out words, ok bool) {
	m = m.trim()
	if len(m) == 0 || m[0]&1 == 0 {
		return nil, false
	}
	u := x.mod(m)
	v := slices.Clone(m)
	a, b := make(words, len(m)), make(words, len(m)) // u ≡ a·x, v ≡ b·x mod m
	a[0] = 1
	defer clear(u)
	defer clear(v)
	defer clear(b)
	for len(u.trim()) > 0 {
		switch {
		case u[0]&1 == 0:
			u.half(0)
			a.halfMod(m)
		case v[0]&1 == 0:
			v.half(0)
			b.halfMod(m)
		case u.less(v):
			v.subtract(u)
			b.subtractMod(a, m)
		default:
			u.subtract(v)
			a.subtractMod(b, m)
		}
	}
	clear(a)
	return slices.Clone(b), v.isOne()
}

func (x words) halfMod(m words) {
	var top uint64
	if x[0]&1 == 1 {
		top = x.add(m)
	}
	x.half(top)
}

func (x words) subtractMod(y, m words) {
	if x.less(y) {
		x.add(m) // what does not fit the subtraction takes away again
	}
	x.subtract(y)
}
