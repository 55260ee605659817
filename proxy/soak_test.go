//go:build soak

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// soakNumber is a number of the environment.
func soakNumber(t *testing.T, name string, def int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 20 {
		t.Fatalf("%s=%q: want a number from 20 on", name, text)
	}
	return n
}

// allowFiles raises the limit of open files to what n connections take, of which a
// process holds one end.
func allowFiles(t *testing.T, n int) {
	t.Helper()
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	need := uint64(n + 2000)
	if lim.Max < need {
		t.Fatalf("at most %d files may be open, and %d idle connections take %d: raise the hard limit or set SOAK_IDLE", lim.Max, n, need)
	}
	lim.Cur = max(lim.Cur, need)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
}

// soaker drives one proxy and counts what became of it.
type soaker struct {
	*env
	visitor
	requests    int // records of the access log so far
	connections int
}

// visitor connects to the proxy at addr with a grant.
type visitor struct {
	addr   string
	cert   tls.Certificate
	roots  *x509.CertPool
	source atomic.Uint32
}

// dialOnce connects from one of many addresses of loopback: each has 28,000 ports,
// and a closed connection keeps its port for a minute.
func (v *visitor) dialOnce(ctx context.Context, protocol string) (*tls.Conn, error) {
	from := byte(v.source.Add(1)%250) + 2
	d := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, from)}, Timeout: time.Minute},
		Config:    &tls.Config{RootCAs: v.roots, ServerName: "localhost", NextProtos: []string{protocol}, Certificates: []tls.Certificate{v.cert}, MinVersion: tls.VersionTLS13},
	}
	c, err := d.DialContext(ctx, "tcp", v.addr)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, errors.New("no TLS connection")
	}
	return t, nil
}

var errSoakAnswer = errors.New("another answer than 200")

// get asks once over HTTP/1.1.
func get(c net.Conn) error {
	if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errSoakAnswer
	}
	return nil
}

// getHTTP2 asks once over HTTP/2, and reads until the answer's last frame.
func getHTTP2(s *h2session) error {
	s.send(1, h2fields("GET", "/a"), true)
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.PseudoValue("status") != "200" {
				return errSoakAnswer
			}
			if f.StreamEnded() {
				return nil
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				return nil
			}
		}
	}
}

// idlers is what TestSoakIdlers is told of whom to connect to, and as whom.
type idlers struct {
	N     int
	Addr  string
	Root  []byte
	Chain [][]byte
	Key   []byte // PKCS #8
}

// idle has another process open n connections, and returns once all are there. The other
// ends are no part of what the proxy holds, of memory or of open files.
func (s *soaker) idle(n int) (closeAll func()) {
	s.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(s.cert.PrivateKey)
	s.must(err)
	cmd := exec.CommandContext(s.t.Context(), os.Args[0], "-test.run", "^TestSoakIdlers$", "-test.timeout", "4h")
	cmd.Env = append(os.Environ(), "SOAK_IDLERS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	s.must(json.NewEncoder(in).Encode(idlers{N: n, Addr: s.visitor.addr, Root: s.pki.idRoot.cert.Raw, Chain: s.cert.Certificate, Key: key}))
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != idlersReady {
		s.t.Log(lines.Text())
	}
	if lines.Text() != idlersReady {
		s.t.Fatalf("the idle connections are not there: %v", errors.Join(lines.Err(), cmd.Wait()))
	}
	return func() { s.must(errors.Join(in.Close(), cmd.Wait())) }
}

const idlersReady = "all are there"

// TestSoakIdlers is TestSoak's other process: it opens connections, every other one HTTP/2,
// has each carry a request, and holds them until its input ends.
func TestSoakIdlers(t *testing.T) {
	if os.Getenv("SOAK_IDLERS") == "" {
		return // it is no test of its own
	}
	var told idlers
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&told); err != nil {
		t.Fatal(err)
	}
	allowFiles(t, told.N)
	key, err := x509.ParsePKCS8PrivateKey(told.Key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(told.Root)
	if err != nil {
		t.Fatal(err)
	}
	v := &visitor{addr: told.Addr, cert: tls.Certificate{Certificate: told.Chain, PrivateKey: key}, roots: x509.NewCertPool()}
	v.roots.AddCert(root)
	for i := range told.N {
		protocol := [...]string{"http/1.1", "h2"}[i%2]
		c, err := v.dialOnce(t.Context(), protocol)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if protocol == "h2" {
			err = getHTTP2(newH2Session(t, c))
		} else {
			err = get(c)
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer func() { _ = c.Close() }() // the proxy has ended it by then
	}
	_, _ = os.Stdout.WriteString(idlersReady + "\n") // who reads it waits for it
	_, _ = io.Copy(io.Discard, os.Stdin)             // its end is all there is to hear
}

// sequential opens n connections one after the other in each of a few lanes; each
// carries a request and is closed.
func (s *soaker) sequential(n int) {
	s.t.Helper()
	const lanes = 4
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	failed := make(chan error, lanes)
	for range lanes {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				c, err := s.dialOnce(s.t.Context(), "http/1.1")
				if err == nil {
					err = errors.Join(get(c), c.Close())
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		s.t.Fatal(err)
	default:
	}
}

func (s *soaker) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// harvest counts the records since the last time and throws them away: a million
// requests are a gigabyte of them.
func (s *soaker) harvest() {
	s.t.Helper()
	path := filepath.Join(s.dir, "access.jsonl")
	if err := os.Rename(path, path+".old"); err != nil {
		s.t.Fatal(err)
	}
	if err := s.px.access.reopen(true); err != nil && s.px.live.len() > 0 {
		s.t.Fatal(err)
	}
	s.count(path + ".old")
}

func (s *soaker) count(path string) {
	s.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(path)) }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		switch {
		case bytes.Contains(lines.Bytes(), []byte(`"kind":"request","event":"end"`)):
			s.requests++
		case bytes.Contains(lines.Bytes(), []byte(`"kind":"connection","event":"end"`)):
			s.connections++
		case bytes.Contains(lines.Bytes(), []byte(`"kind":"log",`)): // a file's first
		case !bytes.Contains(lines.Bytes(), []byte(`"kind":"request","event":"open"`)):
			s.t.Errorf("record %s", lines.Bytes())
		}
	}
	if err := lines.Err(); err != nil {
		s.t.Fatal(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// settled waits until a number stops being above what it should be, and returns it.
func settled(number func() int, want int) int {
	end := time.Now().Add(time.Minute)
	for number() > want && time.Now().Before(end) {
		time.Sleep(50 * time.Millisecond)
	}
	return number()
}

// TestSoak keeps SOAK_IDLE connections open, half of them HTTP/2, while
// SOAK_SEQUENTIAL come, ask and go. After a tenth of those, memory, goroutines and
// open files stay where they are; each request and connection has its record; and
// the proxy drains with all the idle ones on it.
func TestSoak(t *testing.T) {
	idle, sequential := soakNumber(t, "SOAK_IDLE", 10_000), soakNumber(t, "SOAK_SEQUENTIAL", 1_000_000)
	allowFiles(t, idle)
	up := upstreamServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	s := &soaker{env: start(t, options{upstream: up, edit: func(s *Settings) {
		s.Limits.MaxConnections, s.Limits.MaxConnectionsPerGrant = idle+1000, idle+1000
		s.Limits.IdleTimeout = 24 * time.Hour
		s.Drain.Shutdown = time.Minute
	}})}
	s.cert, s.visitor.addr, s.roots = s.pki.grant(24*time.Hour, "GET /a"), s.env.addr, x509.NewCertPool()
	s.roots.AddCert(s.pki.idRoot.cert)
	empty := liveHeap()
	began := time.Now()
	closeAll := s.idle(idle)
	t.Logf("%d idle connections in %s: %d KB of heap each", idle, time.Since(began).Round(time.Millisecond), (liveHeap()-empty)>>10/uint64(idle))
	var heap uint64
	var running, open int
	for tenth := range 10 {
		began = time.Now()
		s.sequential(sequential / 10)
		s.eventually("the idle ones alone", func() bool { return s.px.live.len() == idle })
		s.harvest()
		if tenth == 0 {
			heap, running, open = liveHeap(), runtime.NumGoroutine(), openFiles(t)
		}
		now := liveHeap()
		t.Logf("%d sequential: %d MB of heap, %d goroutines, %d files, %s", (tenth+1)*(sequential/10), now>>20, runtime.NumGoroutine(), openFiles(t), time.Since(began).Round(time.Millisecond))
		if now > heap+heap/20+4<<20 {
			t.Errorf("the heap has grown from %d to %d KB", heap>>10, now>>10)
		}
		if n := settled(runtime.NumGoroutine, running+20); n > running+20 {
			t.Errorf("%d goroutines, and %d after the first tenth", n, running)
		}
		if n := settled(func() int { return openFiles(t) }, open+20); n > open+20 {
			t.Errorf("%d files are open, and %d after the first tenth", n, open)
		}
	}
	began = time.Now()
	s.shutdown()
	t.Logf("drained in %s", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("idle connections held up the drain for %s", took)
	}
	s.count(filepath.Join(s.dir, "access.jsonl"))
	if want := idle + sequential/10*10; s.requests != want || s.connections != want {
		t.Errorf("records of %d requests and %d connections, want %d", s.requests, s.connections, want)
	}
	closeAll()
	if n := settled(runtime.NumGoroutine, goroutines+5); n > goroutines+5 {
		t.Errorf("%d goroutines are left, %d were there before", n, goroutines)
	}
	if n := settled(func() int { return openFiles(t) }, files+5); n > files+5 {
		t.Errorf("%d files are left open, %d were before", n, files)
	}
}
