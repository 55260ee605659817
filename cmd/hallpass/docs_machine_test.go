//go:build integration || kms

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds each block of a page.
const patience = time.Minute

// world is where the pages' commands are typed: machines that are folders with a
// shell each, loopback where the pages have a network, and bin/hallpass as built.
type world struct {
	dir    string
	blocks map[string]block        // by page and name, "operations.md start"
	mine   func(block string) bool // says which of them this run runs, by name
	ran    map[string]bool
	ports  map[string]int // of n1-api, n1-raft, n1-admin, …, proxy, proxy-admin, upstream
	names  *strings.Replacer
	shells []*shell
}

func newWorld(t *testing.T, mine func(block string) bool) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), mine: mine, blocks: map[string]block{}, ran: map[string]bool{}, ports: map[string]int{}}
	for _, b := range pageBlocks(t) {
		if b.run != "" && b.page != "README.md" { // README's are deploy's
			w.blocks[b.page+" "+b.run] = b
		}
	}
	var pairs []string
	for _, n := range append(nodeNames(), "n4") {
		pairs = append(pairs, n+".acme.test:8443", fmt.Sprintf("localhost:%d", w.port(t, n+"-api")))
		pairs = append(pairs, n+".acme.test:7443", fmt.Sprintf("localhost:%d", w.port(t, n+"-raft")))
		w.port(t, n+"-admin")
	}
	w.names = strings.NewReplacer(pairs...)
	w.port(t, "proxy-admin")
	w.serveUpstream(t)
	w.build(t, "hallpass", "", "0")
	t.Cleanup(func() {
		if t.Failed() {
			w.logs(t)
		}
		for _, s := range w.shells {
			s.kill()
		}
	})
	return w
}

func nodeNames() []string { return []string{"n1", "n2", "n3"} }

// port chooses the free port that is called name from now on. It is below those that
// outgoing connections take, for a restarted server must find its port free.
func (w *world) port(t *testing.T, name string) int {
	t.Helper()
	if p, ok := w.ports[name]; ok {
		return p
	}
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close() // it was a question
		for _, taken := range w.ports {
			if taken == port {
				port = 0
			}
		}
		if port != 0 {
			w.ports[name] = port
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// build makes a binary, and a program of that name which ends with the shell that started it,
// so that a test that is killed leaves no server behind.
func (w *world) build(t *testing.T, name, tags, cgo string) {
	t.Helper()
	binary := filepath.Join(w.dir, name)
	buildHallpass(t, binary, tags, cgo)
	w.write(t, "bin/"+name, "#!/bin/sh\nexec setpriv --pdeathsig KILL -- "+binary+" \"$@\"\n")
	if err := os.Chmod(filepath.Join(w.dir, "bin", name), 0o755); err != nil {
		t.Fatal(err)
	}
}

// buildHallpass makes a binary.
func buildHallpass(t *testing.T, file, tags, cgo string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", tags, "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

// logs prints how the servers' logs end, and what the proxy says of itself: the folder they are in
// goes with the test.
func (w *world) logs(t *testing.T) {
	t.Helper()
	scripts, err := filepath.Glob(filepath.Join(w.dir, "*", ".typed-*"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range scripts {
		typed, err := os.ReadFile(file)
		if err != nil || strings.HasSuffix(file, ".out") || !strings.Contains(string(typed), "& echo $!") {
			continue // no server was started in it
		}
		text, err := os.ReadFile(file + ".out")
		if err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		t.Logf("%s ends with:\n%s", file, strings.Join(lines[max(0, len(lines)-logLines):], "\n"))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
	defer cancel()
	for _, name := range append(nodeNames(), "n4", "proxy") {
		said, err := exec.CommandContext(ctx, "curl", "-sS", fmt.Sprintf("127.0.0.1:%d/readyz", w.ports[name+"-admin"])).CombinedOutput()
		t.Logf("%s is ready: %v: %s", name, err, said)
	}
}

// logLines is how much of a log is enough to see why a test failed.
const logLines = 60

// serveUpstream is the service that everything is about.
func (w *world) serveUpstream(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", w.port(t, "upstream")))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "payments: %s %s for %s\n", r.Method, r.URL.Path, r.Header.Get("X-Hallpass-Subject"))
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
}

// write puts a file below the world's folder.
func (w *world) write(t *testing.T, path, text string) {
	t.Helper()
	file := filepath.Join(w.dir, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// carry copies a file or a folder from one machine to another, as a person would.
func (w *world) carry(t *testing.T, from, to string) {
	t.Helper()
	from, to = filepath.Join(w.dir, from), filepath.Join(w.dir, to)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (w *world) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// page is the block of that page and name as it is to be typed here: the machines' names are
// loopback's, and what besides them pairs replace, old and new in turn.
func (w *world) page(t *testing.T, key string, pairs ...string) string {
	t.Helper()
	b, ok := w.blocks[key]
	if !ok {
		t.Fatalf("no page has a block %q", key)
	}
	w.ran[key] = true
	return w.here(strings.NewReplacer(pairs...).Replace(b.text))
}

func (w *world) here(text string) string { return w.names.Replace(text) }

// unrun are the blocks that say they are run and that nothing has run.
func (w *world) unrun() (out []string) {
	for key, b := range w.blocks {
		if w.mine(b.run) && !w.ran[key] {
			out = append(out, fmt.Sprintf("%s (%s)", b, b.run))
		}
	}
	slices.Sort(out)
	return out
}

// shell is one on a machine, and remembers what was typed: variables, functions, jobs.
type shell struct {
	dir   string
	id    int // no other shell on the same machine has it
	cmd   *exec.Cmd
	stdin io.WriteCloser
	said  *bufio.Reader
	typed int
}

// shell opens one in a machine's folder. curl finds the proxy under the name that its
// certificate has.
func (w *world) shell(t *testing.T, machine string) *shell {
	t.Helper()
	w.write(t, machine+"/.curlrc", fmt.Sprintf("connect-to = payments.acme.test:9443:127.0.0.1:%d\n", w.port(t, "proxy")))
	s := &shell{dir: filepath.Join(w.dir, machine), id: len(w.shells)}
	s.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), "bash", "-euo", "pipefail", "-s")
	s.cmd.Dir, s.cmd.Stderr = s.dir, os.Stderr
	s.cmd.Env = []string{"PATH=" + filepath.Join(w.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "LANG=C.UTF-8", "NO_COLOR=1", "EDITOR=true"}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.said = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.shells = append(w.shells, s)
	return s
}

// start types text and does not wait for its end; printed is the file with what it says.
func (s *shell) start(t *testing.T, text string) (printed string) {
	t.Helper()
	s.typed++
	script := filepath.Join(s.dir, fmt.Sprintf(".typed-%d-%d", s.id, s.typed))
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(s.stdin, "source %s >%[1]s.out 2>&1 </dev/null; echo done\n", script); err != nil {
		t.Fatal(err)
	}
	return script + ".out"
}

// run types text and returns what it printed. The first command that fails ends the shell, and
// the test.
func (s *shell) run(t *testing.T, text string) string {
	t.Helper()
	file := s.start(t, text)
	done := make(chan error, 1)
	go func() {
		_, err := s.said.ReadString('\n')
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(patience):
		err = fmt.Errorf("not done after %s", patience)
	}
	printed, readErr := os.ReadFile(file)
	if err != nil || readErr != nil {
		t.Fatalf("%v\n--- typed in %s:\n%s\n--- printed:\n%s", err, s.dir, text, printed)
	}
	return string(printed)
}

// kill ends the shell and what it started.
func (s *shell) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may be gone
	_ = s.cmd.Wait()
}

// within asks again until nothing is wrong.
func within(t *testing.T, what string, wrong func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = wrong(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not after %s: %v", what, patience, err)
}
