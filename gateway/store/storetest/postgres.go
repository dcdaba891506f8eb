package storetest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enrollgate/enrollgate/gateway/store"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver, for the server's own database
)

// Server is a PostgreSQL server that only this process can reach, over a socket in a folder that goes with it.
type Server struct {
	dir    string
	admin  *sql.DB
	cmd    *exec.Cmd
	exited chan struct{}
}

// unprivileged is who runs the server where the tests run as root, which PostgreSQL refuses: nobody.
const unprivileged = 65534

const startTime = 30 * time.Second

// Start makes and starts a server. It ends with Stop, or with this process.
func Start() (s *Server, err error) {
	initdb, err := find("initdb")
	if err != nil {
		return nil, err
	}
	postgres, err := find("postgres")
	if err != nil {
		return nil, err
	}
	s = &Server{exited: make(chan struct{})}
	if s.dir, err = os.MkdirTemp("", "postgres"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	if os.Getuid() == 0 {
		if err := os.Chown(s.dir, unprivileged, unprivileged); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(s.dir, "data")
	c := s.command(initdb, "-D", data, "-A", "trust", "-U", "enrollgate", "-E", "UTF8", "--locale=C.UTF-8", "-N")
	if out, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	// What a crash of the machine would do is not tested here: nothing is synced.
	s.cmd = s.command(postgres, "-D", data, "-k", s.dir, "-h", "", "-F", "-c", "full_page_writes=off", "-c", "max_connections=200",
		"-c", "shared_buffers=64MB", "-c", "max_wal_size=2GB", "-c", "wal_level=minimal", "-c", "max_wal_senders=0")
	if err := s.run(); err != nil {
		return nil, err
	}
	return s, s.prepare()
}

var errNotInstalled = errors.New("is not installed")

// find looks for a program where Debian puts it, outside the path.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return "", fmt.Errorf("%s %w: apt-get install postgresql", name, errNotInstalled)
	}
	return found[len(found)-1], nil
}

func (s *Server) command(path string, args ...string) *exec.Cmd {
	c := exec.Command(path, args...)
	c.Dir = s.dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() == 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
	}
	return c
}

// run starts the server. It is asked to end when the thread that started it does, so that thread stays.
func (s *Server) run() error {
	var log bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &log, &log
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer close(s.exited)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	var err error
	if s.admin, err = sql.Open("pgx", string(s.address("postgres"))); err != nil {
		return err
	}
	for deadline := time.Now().Add(startTime); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.exited:
			return fmt.Errorf("postgres has ended:\n%s", log.String())
		default:
		}
		if err = s.admin.Ping(); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

// template is the database that others are copied from: with the schema.
const template = "enrollgate"

func (s *Server) prepare() error {
	if _, err := s.admin.Exec("CREATE DATABASE " + template); err != nil {
		return err
	}
	db, err := store.OpenPostgres(context.Background(), string(s.address(template)), nil)
	if err != nil {
		return err
	}
	return db.Close()
}

func (s *Server) address(database string) Address {
	return Address(fmt.Sprintf("postgres:///%s?user=enrollgate&host=%s", database, s.dir))
}

// New makes a database with the schema. It is removed when the test ends.
func (s *Server) New(t testing.TB) Address {
	t.Helper()
	return s.copy(t, template)
}

// Empty makes a database with nothing in it.
func (s *Server) Empty(t testing.TB) Address {
	t.Helper()
	return s.copy(t, "template0")
}

func (s *Server) copy(t testing.TB, from string) Address {
	t.Helper()
	name := fmt.Sprintf("test%d", databases.Add(1))
	if _, err := s.admin.Exec("CREATE DATABASE " + name + " TEMPLATE " + from + ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.admin.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return s.address(name)
}

// Stop ends the server and removes its files.
func (s *Server) Stop() {
	if s.admin != nil {
		s.admin.Close()
	}
	if s.cmd != nil && s.cmd.Process != nil {
		if err := s.cmd.Process.Signal(syscall.SIGINT); err == nil || errors.Is(err, os.ErrProcessDone) {
			<-s.exited
		}
	}
	if strings.HasPrefix(filepath.Base(s.dir), "postgres") {
		os.RemoveAll(s.dir)
	}
}

// ForTest starts a server for one test, or skips the test where there is no PostgreSQL; where CI is set, it fails.
func ForTest(t testing.TB) *Server {
	t.Helper()
	s, err := Start()
	if errors.Is(err, errNotInstalled) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}
