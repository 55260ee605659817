package realpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hallpass/hallpass/internal/loopback"
)

// T is the part of *testing.T that a Server uses. Fatalf MUST NOT return.
type T interface {
	Helper()
	Cleanup(fn func())
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Options says how to reach it. The zero value takes nobody but its superuser,
// postgres, by the socket.
type Options struct {
	// Cert, Key and Roots are PEM: what it shows in TLS, and what it verifies
	// clients with. Without them there is no TLS.
	Cert, Key, Roots []byte
	// HBA are lines of pg_hba.conf, behind the superuser's own.
	HBA string
	// Ident is pg_ident.conf.
	Ident string
}

// Server is a running PostgreSQL.
type Server struct {
	Dir  string // of its socket, and of its files
	Port int    // on 127.0.0.1, and of the socket's name

	t        T
	bin      string
	uid, gid int
}

const (
	patience = time.Minute // for it to start, on a busy machine

	rootsFile = "ca.pem"
)

// Start runs one until the test ends. As root it runs it as the user postgres,
// since PostgreSQL refuses to run as root.
func Start(t T, o Options) *Server {
	t.Helper()
	s := &Server{t: t}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		t.Fatalf("PostgreSQL is not installed: make deps")
	}
	slices.Sort(found)
	s.bin = filepath.Dir(found[len(found)-1])
	s.must(s.findOwner())
	s.must(s.findPort())
	s.Dir, err = os.MkdirTemp("", "hallpass-pg") // not the test's own: a socket's path is short, and its folder another user's
	s.must(err)
	t.Cleanup(func() { _ = os.RemoveAll(s.Dir) })
	s.must(s.give(s.Dir))
	data := filepath.Join(s.Dir, "data")
	if out, err := s.command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	s.must(os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("local all postgres trust\n"+o.HBA), 0o600))
	s.must(os.WriteFile(filepath.Join(data, "pg_ident.conf"), []byte(o.Ident), 0o600))
	args := []string{
		"-D", data, "-k", s.Dir, "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1",
		"-c", "fsync=off", "-c", "max_connections=60", "-c", "shared_buffers=16MB", "-c", "log_min_messages=fatal",
	}
	s.run(append(args, s.tls(o)...))
	return s
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("PostgreSQL: %v", err)
	}
}

// findOwner chooses who it runs as: not root.
func (s *Server) findOwner() error {
	s.uid, s.gid = os.Getuid(), os.Getgid()
	if s.uid != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	var bad error
	s.uid, err = strconv.Atoi(u.Uid)
	s.gid, bad = strconv.Atoi(u.Gid)
	return errors.Join(err, bad)
}

func (s *Server) findPort() error {
	r, err := loopback.Reserve()
	if err != nil {
		return err
	}
	s.t.Cleanup(func() { _ = r.Release() })
	_, port, err := net.SplitHostPort(r.Address())
	if err != nil {
		return err
	}
	s.Port, err = strconv.Atoi(port)
	return err
}

// give makes a file its own: it refuses a key that is another's.
func (s *Server) give(path string) error { return os.Chown(path, s.uid, s.gid) }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, name), args...)
	cmd.Dir = s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.gid)}
	}
	return cmd
}

// tls writes its files, and gives the arguments that name them.
func (s *Server) tls(o Options) []string {
	if o.Cert == nil {
		return nil
	}
	args := []string{"-c", "ssl=on"}
	for _, f := range []struct {
		name, setting string
		text          []byte
	}{{"cert.pem", "ssl_cert_file", o.Cert}, {"key.pem", "ssl_key_file", o.Key}, {rootsFile, "ssl_ca_file", o.Roots}} {
		path := filepath.Join(s.Dir, f.name)
		s.must(os.WriteFile(path, f.text, 0o600))
		s.must(s.give(path))
		args = append(args, "-c", f.setting+"="+path)
	}
	return args
}

func (s *Server) run(args []string) {
	s.t.Helper()
	cmd := s.command("postgres", args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	s.must(cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // fast shutdown
		_ = cmd.Wait()                         // what matters is that it is gone
		if s.t.Failed() {
			s.t.Logf("postgres: %s", log.String())
		}
	})
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err = s.Query(context.Background(), "postgres", "SELECT 1"); err == nil {
			return
		}
	}
	s.must(err)
}

// Roots is the file of Options.Roots.
func (s *Server) Roots() string { return filepath.Join(s.Dir, rootsFile) }

// Socket is its Unix socket.
func (s *Server) Socket() string { return filepath.Join(s.Dir, ".s.PGSQL."+strconv.Itoa(s.Port)) }

// Query runs statements as the superuser and returns the first row of the last of
// them that has one.
func (s *Server) Query(ctx context.Context, db, text string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s", s.Dir, s.Port, db))
	if err != nil {
		return nil, err
	}
	results, err := conn.Exec(ctx, text).ReadAll()
	return Row(results), errors.Join(err, conn.Close(ctx))
}

// Row is the first row of the last result that has one.
func Row(results []*pgconn.Result) []string {
	for _, r := range slices.Backward(results) {
		if len(r.Rows) > 0 {
			var out []string
			for _, v := range r.Rows[0] {
				out = append(out, string(v))
			}
			return out
		}
	}
	return nil
}
