package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/test/vectors"
	"github.com/enrollgate/enrollgate/test/world"
)

// peakLimit bounds the resident memory of the gateway over everything that TestHostileInputLeavesMemoryBounded sends.
const peakLimit = 512 << 20

// patience is how long one hostile message may take to be refused.
const patience = 10 * time.Second

func TestHostileInputLeavesMemoryBounded(t *testing.T) {
	w, path := world.Prepare(t, "")
	p := world.NewProcess(t, w, path)
	p.Start(t)
	alice := w.Client(t, "alice")
	alice.HTTP.Timeout = patience
	before := peak(t, p)
	t.Run("damaged recordings", func(t *testing.T) { damagedRecordings(t, alice) })
	t.Run("bombs of XML", func(t *testing.T) { bombsOfXML(t, alice) })
	t.Run("bombs of DER", func(t *testing.T) { bombsOfDER(t, alice) })
	if _, err := alice.Submit(t, first(world.Request(t, "LabUserAuth", nil))); err != nil {
		t.Errorf("a good request afterwards: %v", err)
	}
	after := peak(t, p)
	t.Logf("peak memory %d MiB, before %d MiB", after>>20, before>>20)
	if after > peakLimit {
		t.Errorf("the gateway used %d MiB", after>>20)
	}
}

// peak is the most resident memory that the process ever had, in octets (proc(5), VmHWM).
func peak(t testing.TB, p *world.Process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no VmHWM in %s", text)
	}
	n, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// damagedRecordings flips octets of the recorded requests and cuts them off, with 8 clients at once. What still decodes
// is refused by policy: no template of the lab has their names.
func damagedRecordings(t *testing.T, alice *world.Client) {
	stride := 7
	if os.Getenv("ENROLLGATE_LONG") != "" {
		stride = 1
	}
	begin := time.Now()
	bad := make(chan []byte, 64)
	var sent, accepted atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for der := range bad {
				sent.Add(1)
				if _, err := alice.Submit(t, der); err == nil {
					accepted.Add(1)
				} else if strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "Timeout") {
					t.Errorf("no answer: %v", err)
				}
			}
		})
	}
	for _, der := range vectors.Requests(t) {
		for i := 0; i < len(der); i += stride {
			flipped := bytes.Clone(der)
			flipped[i] ^= 1 << (i % 8)
			bad <- flipped
			bad <- der[:i]
		}
	}
	close(bad)
	wg.Wait()
	t.Logf("%d damaged requests in %s", sent.Load(), time.Since(begin).Round(time.Millisecond))
	if sent.Load() == 0 || accepted.Load() != 0 {
		t.Errorf("%d of %d damaged requests were accepted", accepted.Load(), sent.Load())
	}
}

func bombsOfXML(t *testing.T, alice *world.Client) {
	const kind = "application/soap+xml; charset=utf-8"
	entities := `<!DOCTYPE l [<!ENTITY a "` + strings.Repeat("a", 1000) + `"><!ENTITY b "` + strings.Repeat("&a;", 1000) + `"><!ENTITY c "` + strings.Repeat("&b;", 1000) + `">]>`
	var attributes, prefixes strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&attributes, ` a%d=""`, i)
		fmt.Fprintf(&prefixes, ` xmlns:n%d="u"`, i)
	}
	for name, c := range map[string]struct{ body, encoding string }{
		"a million levels":        {strings.Repeat("<x>", 1_000_000), ""},
		"levels within the limit": {strings.Repeat("<x>", 300_000), ""},
		"a billion laughs":        {entities + "<l>&c;</l>", ""},
		"an external entity":      {`<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>`, ""},
		"many attributes":         {"<x" + attributes.String() + "/>", ""},
		"many prefixes":           {"<x" + prefixes.String() + "/>", ""},
		"a long attribute":        {`<x a="` + strings.Repeat("a", 10<<20) + `"/>`, ""},
		"60 MB of base64":         {"<x>" + strings.Repeat("A", 60<<20) + "</x>", ""},
		"UTF-16":                  {`<?xml version="1.0" encoding="utf-16"?><x/>`, ""},
		"UTF-7":                   {`<?xml version="1.0" encoding="utf-7"?>+ADw-x/+AD4-`, ""},
		"NUL octets":              {"<x>" + strings.Repeat("\x00", 1000) + "</x>", ""},
		"gzip declared":           {"\x1f\x8b\x08" + strings.Repeat("\x00", 1000), "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, url := range []string{alice.CEP, alice.CES} {
				req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(c.body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", kind)
				if c.encoding != "" {
					req.Header.Set("Content-Encoding", c.encoding)
				}
				resp, err := alice.HTTP.Do(req)
				if err != nil {
					if len(c.body) > 1<<20 && !strings.Contains(err.Error(), "Timeout") {
						continue // the listener hung up in the middle, which is as good
					}
					t.Fatal(err)
				}
				answer, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode < 400 || strings.Contains(string(answer), "root:") {
					t.Errorf("%s: %s, %.300s, %v", url, resp.Status, answer, err)
				}
			}
		})
	}
}

func bombsOfDER(t *testing.T, alice *world.Client) {
	const room = 700_000 // what fits into a message of 1 MiB, in base64
	signed := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2}
	version := []byte{2, 1, 0}
	empty := []byte{0x30, 0}
	data := tlv(0x30, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1})
	cms := func(rest ...[]byte) []byte {
		return tlv(0x30, signed, tlv(0xa0, tlv(0x30, version, tlv(0x31), data, slices.Concat(rest...))))
	}
	attribute := []byte{0x30, 5, 6, 1, 0x2a, 0x31, 0}
	for name, der := range map[string][]byte{
		"100,000 levels":                      nested(0x30, 100_000),
		"10,000 constructed OCTET STRINGs":    tlv(0x30, signed, tlv(0xa0, nested(0x24, 10_000))),
		"indefinite lengths":                  bytes.Repeat([]byte{0x30, 0x80}, room/2),
		"a length of 2^31":                    {0x30, 0x84, 0x80, 0, 0, 0, 1},
		"a length of 2^63":                    {0x30, 0x88, 0x80, 0, 0, 0, 0, 0, 0, 0, 1},
		"an inner length of 2^31":             tlv(0x30, []byte{6, 0x84, 0x80, 0, 0, 0, 1}),
		"a long OID":                          tlv(0x30, tlv(6, bytes.Repeat([]byte{0x81}, room), []byte{1})),
		"an OID of many arcs":                 tlv(0x30, tlv(6, bytes.Repeat([]byte{1}, room)), tlv(0xa0, empty)),
		"100,000 certificates":                cms(tlv(0xa0, bytes.Repeat(empty, 100_000)), tlv(0x31)),
		"100,000 signers":                     cms(tlv(0x31, bytes.Repeat(empty, 100_000))),
		"CRLs by the hundred thousand":        cms(tlv(0xa1, bytes.Repeat(empty, 100_000)), tlv(0x31)),
		"a signature by a giant RSA key":      pkcs10(rsaKey(100_000, 3), nil),
		"a giant exponent":                    pkcs10(rsaKey(2048, 100_000), nil),
		"a point off the curve":               pkcs10(offCurve(), nil),
		"as many attributes as fit":           pkcs10(rsaKey(2048, 24), bytes.Repeat(attribute, room/len(attribute))),
		"an integer of the size of a message": tlv(0x30, tlv(0x30, tlv(2, bytes.Repeat([]byte{0x7f}, room)))),
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, err := alice.Submit(t, der)
			took := time.Since(begin)
			if err == nil || !strings.Contains(err.Error(), "0x8") {
				t.Errorf("%d octets: %v, want a fault with an HRESULT", len(der), err)
			}
			t.Logf("%d octets, %s: %.120v", len(der), took.Round(time.Millisecond), err)
		})
	}
}

// tlv is one DER element.
func tlv(tag byte, content ...[]byte) []byte {
	body := slices.Concat(content...)
	return slices.Concat([]byte{tag}, length(len(body)), body)
}

func length(n int) []byte {
	if n < 0x80 {
		return []byte{byte(n)}
	}
	var b []byte
	for ; n > 0; n >>= 8 {
		b = append([]byte{byte(n)}, b...)
	}
	return append([]byte{0x80 | byte(len(b))}, b...)
}

// nested is an element inside itself, many times; it is written from its end, or it would take forever.
func nested(tag byte, depth int) []byte {
	var b []byte
	for range depth {
		l := length(len(b))
		slices.Reverse(l)
		b = append(append(b, l...), tag)
	}
	slices.Reverse(b)
	return b
}

// rsaKey is a SubjectPublicKeyInfo of an odd modulus and exponent with these numbers of bits.
func rsaKey(modulus, exponent int) []byte {
	odd := func(bits int) []byte { return tlv(2, append([]byte{0}, bytes.Repeat([]byte{0xff}, (bits+7)/8)...)) }
	key := tlv(0x30, odd(modulus), odd(exponent))
	return tlv(0x30, tlv(0x30, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0}), tlv(3, []byte{0}, key))
}

// offCurve is a SubjectPublicKeyInfo with (1, 1), which is not on P-256.
func offCurve() []byte {
	one := append(make([]byte, 31), 1)
	return tlv(0x30, tlv(0x30, []byte{6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}), tlv(3, []byte{0, 4}, one, one))
}

// pkcs10 is a request whose signature is nonsense of the length of a 2048-bit key.
func pkcs10(spki, attributes []byte) []byte {
	info := tlv(0x30, []byte{2, 1, 0, 0x30, 0}, spki, tlv(0xa0, attributes))
	return tlv(0x30, info, tlv(0x30, []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0}), tlv(3, []byte{0}, make([]byte, 256)))
}
