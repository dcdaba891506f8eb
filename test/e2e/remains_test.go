package e2e

import (
	"bufio"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/escrow"
	"github.com/enrollgate/enrollgate/gateway/memory"
	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/test/remains"
	"github.com/enrollgate/enrollgate/test/testpki"
)

// archivesForAnother is set in the environment of a process that archives what it reads.
const archivesForAnother = "ENROLLGATE_TEST_ARCHIVES"

// While keys are archived, the scheduler takes the processor from the goroutine at any instruction, and the system takes it for a
// signal: each would leave registers with parts of the key on a stack, if the runtime did not know that they are secret.
func TestNoPartOfAKeyIsLeftInMemoryWhenItsProcessorIsTaken(t *testing.T) {
	if os.Getenv(archivesForAnother) != "" {
		archiveLines(t)
		return
	}
	if !memory.Erases {
		if os.Getenv("CI") != "" {
			t.Fatal("this test was not built with GOEXPERIMENT=runtimesecret")
		}
		t.Skip("this test was not built with GOEXPERIMENT=runtimesecret, as make builds it")
	}
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=5m")
	c.Env, c.Stderr = append(os.Environ(), archivesForAnother+"=yes"), os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatal("the process that archives has ended")
		}
		return lines.Text()
	}
	der, err := base64.StdEncoding.DecodeString(next())
	if err != nil {
		t.Fatal(err)
	}
	exchange := testpki.Cert(t, der)
	const rounds, each = 40, 8
	found, searched := map[string]int{}, 0
	var done []*rsa.PrivateKey
	for range rounds {
		var keys []*rsa.PrivateKey
		for range each {
			keys = append(keys, testpki.RSA(t, 1024))
		}
		for _, key := range keys {
			der, err := wcce.NewRequest(wcce.RequestOptions{Key: key, Exchange: exchange})
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(in, base64.StdEncoding.EncodeToString(der))
		}
		for range keys {
			if line := next(); line != "archived" {
				t.Fatal(line)
			}
		}
		done = append(done, keys...)
		searched += remains.Of(done).Memory(t, c.Process.Pid, found)
	}
	t.Logf("%d keys archived, %d MiB of memory searched", len(done), searched>>20)
	if searched < 10<<20 {
		t.Errorf("only %d octets were searched", searched)
	}
	if len(found) > 0 {
		t.Errorf("%d parts of private keys are in the memory: %v", len(found), found)
	}
}

// archiveLines writes the exchange certificate, then archives the key of each request that it reads, with as many goroutines as have
// to take turns, while the garbage collector stops them.
func archiveLines(t *testing.T) {
	db, now := testpki.DB(t), time.Now()
	ca := testpki.CA(t, db, time.Now)
	v, err := escrow.New(t.Context(), escrow.Options{DB: db, Secret: []byte("test secret"), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	_, agent := testpki.Agent(t, "agent", now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0))
	if err := v.AddAgent(t.Context(), agent, "test"); err != nil {
		t.Fatal(err)
	}
	exchange, err := v.Exchange(t.Context(), "Test CA", ca.Identity())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(base64.StdEncoding.EncodeToString(exchange.Raw))
	var mu sync.Mutex
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	next := func() ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if !lines.Scan() {
			return nil, lines.Err()
		}
		return base64.StdEncoding.AppendDecode(nil, lines.Bytes())
	}
	go func() {
		for {
			runtime.GC()
		}
	}()
	var group sync.WaitGroup
	for range 4 * runtime.NumCPU() {
		group.Go(func() {
			for {
				der, err := next()
				if err != nil || der == nil {
					return
				}
				r, err := wcce.ParseRequest(der)
				if err == nil {
					_, err = v.Open("Test CA", r, escrow.Owner{Name: "alice@LAB.TEST", Template: "Mail"})
				}
				if err != nil {
					fmt.Println(err)
					continue
				}
				fmt.Println("archived")
			}
		})
	}
	group.Wait()
}
