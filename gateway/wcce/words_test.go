package wcce

import (
	"bytes"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

// number draws octets with long runs of zeros and ones, where divisions go wrong.
func drawNumber(t *rapid.T, name string, most int) []byte {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{"\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff", "\x80\x00\x00\x00\x00\x00\x00\x00", "\x00", "\xff", "\x01", "?"}), 0, most).Draw(t, name)
	var out []byte
	for _, p := range parts {
		if p == "?" {
			p = string(rapid.SliceOfN(rapid.Byte(), 1, 24).Draw(t, name+" random"))
		}
		out = append(out, p...)
	}
	return out
}

func TestWordsComputeWhatMathBigDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, m := drawNumber(t, "x", 12), drawNumber(t, "m", 6)
		bx, bm := new(big.Int).SetBytes(x), new(big.Int).SetBytes(m)
		wx, wm := wordsOf(x), wordsOf(m)
		if got := wx.bytes(len(x)); !bytes.Equal(got, x) {
			t.Fatalf("%x came back as %x", x, got)
		}
		if got := new(big.Int).SetBytes(wx.mul(wm).bytes(len(x) + len(m))); got.Cmp(new(big.Int).Mul(bx, bm)) != 0 {
			t.Fatalf("%x · %x = %x", x, m, got)
		}
		if wx.less(wm) != (bx.Cmp(bm) < 0) || wx.equal(wm) != (bx.Cmp(bm) == 0) || wx.isOne() != (bx.Cmp(big.NewInt(1)) == 0) {
			t.Fatalf("%x and %x are compared wrongly", x, m)
		}
		if bx.Sign() > 0 {
			if got := new(big.Int).SetBytes(wx.minusOne().bytes(len(x))); got.Cmp(new(big.Int).Sub(bx, big.NewInt(1))) != 0 {
				t.Fatalf("%x - 1 = %x", x, got)
			}
		}
		if bm.Sign() == 0 {
			return
		}
		if got := new(big.Int).SetBytes(wx.mod(wm).bytes(len(m))); got.Cmp(new(big.Int).Mod(bx, bm)) != 0 {
			t.Fatalf("%x mod %x = %x", x, m, got)
		}
		inverse, ok := wx.inverse(wm)
		if bm.Bit(0) == 0 {
			if ok {
				t.Fatalf("an inverse mod %x, which is even", m)
			}
			return
		}
		want := new(big.Int).ModInverse(bx, bm)
		if bm.Cmp(big.NewInt(1)) == 0 {
			return // everything is zero
		}
		if ok != (want != nil) {
			t.Fatalf("1/%x mod %x: %v, want %v", x, m, ok, want)
		}
		if ok && new(big.Int).SetBytes(inverse.bytes(len(m))).Cmp(want) != 0 {
			t.Fatalf("1/%x mod %x = %x, want %x", x, m, inverse, want)
		}
	})
}
