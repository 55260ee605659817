package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// inSandbox names the folder that the child process of TestSandbox may use.
const inSandbox = "HALLPASS_TEST_SANDBOX"

// TestSandbox runs TestSandboxChild in a process of its own: a sandbox is for life.
func TestSandbox(t *testing.T) {
	if version, err := ll.LandlockGetABIVersion(); err != nil || version < landlockNet {
		// A kernel without it: who requires a sandbox does not run without one.
		if said, err := confine(reach{}, sandboxRequired); err == nil {
			t.Errorf("with Landlock version %d it says %s", version, said)
		}
		return
	}
	dir := t.TempDir()
	for _, name := range []string{"proxy", "outside"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "outside", "secret"), []byte("secret"))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSandboxChild$", "-test.v")
	cmd.Env = append(os.Environ(), inSandbox+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestSandboxChild") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestSandboxChild: a confined proxy serves, reloads and rotates; and the process
// reaches no file and no port that its configuration does not name.
func TestSandboxChild(t *testing.T) {
	dir := os.Getenv(inSandbox)
	if dir == "" {
		return // it is run by TestSandbox
	}
	p := newPKI(t)
	other := tcpEcho(t) // a port that is not named
	up := upstreamServer(t, says("served"))
	f := newFleet(t, p, filepath.Join(dir, "proxy"), service("payments", up, ""))
	f.f.members["payments"].px.cfg.sandbox = sandboxRequired
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.f.listen = func(context.Context, string) (net.Listener, error) { return ln, nil }
	mine := ln.Addr().(*net.TCPAddr).Port             //nolint:forcetypeassert // it is one
	if err := f.f.Sandbox(uint16(mine)); err != nil { // the client is in this process
		t.Fatal(err)
	}
	f.run()
	c := f.client(f.grant("payments", "GET /**"), "payments.acme.test", shared, true)
	if status, body, err := f.get(c, "payments.acme.test", "/a"); status != 200 || body != "served" || err != nil {
		t.Errorf("%d %q, %v", status, body, err)
	}
	if !errors.Is(canRead(filepath.Join(dir, "outside", "secret")), fs.ErrPermission) {
		t.Error("a file outside can be read")
	}
	for _, path := range []string{filepath.Join(dir, "outside", "new"), "/etc/hallpass-test"} {
		if err := os.WriteFile(path, nil, 0o600); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s can be written: %v", path, err)
		}
	}
	if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", other); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another port can be connected to: %v, %v", conn, err)
	}
	if l, err := listenTCP(t.Context(), "127.0.0.1:"+portBut(mine)); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("another port can be bound: %v, %v", l, err)
	}
	for task, status := range statuses(t) {
		for _, want := range []string{"NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"} {
			if !strings.Contains(status, want) {
				t.Errorf("thread %s is not %s", task, want)
			}
		}
	}
	// The log rotates where it is, and a configuration that needs more says what.
	if err := os.Rename(filepath.Join(f.dir, "access.jsonl"), filepath.Join(f.dir, "access.1")); err != nil {
		t.Error(err)
	}
	f.write(f.yaml(strings.Replace(service("payments", up, ""), "hosts: [", "hosts: [x.acme.test, ", 1)))
	if err := f.f.Reload(); err == nil || !strings.Contains(err.Error(), "sandbox: cannot change") {
		t.Errorf("a sandbox that ends: %v", err)
	}
	if err := canRead(filepath.Join(f.dir, "access.jsonl")); err != nil {
		t.Error(err)
	}
	for what, text := range map[string]string{
		"connecting to port 9":                    f.yaml(service("payments", "http://127.0.0.1:9", "")),
		"folder " + filepath.Join(dir, "outside"): strings.ReplaceAll(f.yaml(service("payments", up, "")), "payments/cert.pem", filepath.Join(dir, "outside", "cert.pem")),
		"listening on port 9":                     f.yaml(service("payments", up, ", listen: '127.0.0.1:9'")),
	} {
		f.write("sandbox: required" + text)
		err := f.f.Reload()
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "the sandbox allowed") {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.write("sandbox: required" + f.yaml(strings.Replace(service("payments", up, ""), "hosts: [", "hosts: [pay.acme.test, ", 1)))
	if err := f.f.Reload(); err != nil {
		t.Errorf("within the sandbox: %v", err)
	}
}

func canRead(path string) error {
	_, err := os.ReadFile(path)
	return err
}

// portBut is any port but one.
func portBut(not int) string {
	if not == 45454 {
		return "45455"
	}
	return "45454"
}

// statuses are those of every thread.
func statuses(t *testing.T) map[string]string {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, task := range tasks {
		if data, err := os.ReadFile(filepath.Join("/proc/self/task", task.Name(), "status")); err == nil {
			out[task.Name()] = string(data)
		}
	}
	if len(out) == 0 {
		t.Fatal("no threads")
	}
	return out
}

// TestReach: what a configuration needs, and what another needs beyond it.
func TestReach(t *testing.T) {
	base := func(s *Settings) {
		*s = Settings{
			Service: "payments", Listen: "0.0.0.0:9443", Hosts: []string{"localhost"}, Upstream: "http://127.0.0.1:8080", TrustDomain: "acme.test",
			Certificate: "/svid/cert.pem", Key: "/svid/key.pem", IdentityBundle: "/svid/i.pem", GrantsBundle: "/svid/g.pem",
			AccessLog:  AccessLogSettings{Path: "/log/access.jsonl"},
			Revocation: RevocationSettings{Servers: []string{"https://n1:8443", "https://n2"}, StateFile: "/state/revocations.json"},
			Admin:      "unix:/run/x/admin.sock",
		}
	}
	of := func(edit func(*Settings)) reach {
		t.Helper()
		var s Settings
		base(&s)
		edit(&s)
		cfg, err := newConfig(Config{Settings: s})
		if err != nil {
			t.Fatal(err)
		}
		r, err := reachOf([]*config{cfg}, "/conf/proxy.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := of(func(*Settings) {})
	if got, want := fmt.Sprint(r), "{[/conf /svid] [/log /run/x /state] [9443] [443 8080 8443]}"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for want, edit := range map[string]func(*Settings){
		"":                        func(*Settings) {},
		"folder /other":           func(s *Settings) { s.Key = "/other/key.pem" },
		"folder /svidx":           func(s *Settings) { s.Key = "/svidx/key.pem" },
		"listening on port 9444":  func(s *Settings) { s.Listen = ":9444" },
		"connecting to port 8081": func(s *Settings) { s.Upstream = "http://127.0.0.1:8081" },
		"folder to write in /svid": func(s *Settings) {
			s.AccessLog.Path = "/svid/access.jsonl"
		},
	} {
		if got := strings.Join(r.lacks(of(edit)), " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := r.lacks(of(func(s *Settings) { s.Key, s.Upstream = "/svid/deeper/key.pem", "unix:///up.sock" })); len(got) != 0 {
		t.Errorf("below, and a socket: %v", got)
	}
	if !slices.Contains(r.connect, 443) || strconv.Itoa(int(r.bind[0])) != "9443" {
		t.Error(r)
	}
}
