//go:build integration

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/ca"
)

// TestSocketActivation: a proxy that systemd starts at the first connection takes the
// sockets it is given, says when it is ready, reloads and stops, and answers the
// connection that it was started for.
func TestSocketActivation(t *testing.T) {
	if _, err := exec.LookPath("systemd-socket-activate"); err != nil {
		t.Fatal("systemd-socket-activate is missing: make deps")
	}
	f, dir := newFake(t), t.TempDir()
	binary := filepath.Join(dir, "hallpass")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	id := f.issue(t, "service/payments", "--dns", "localhost")
	listen, admin := closedAddress(t), closedAddress(t)
	config := filepath.Join(dir, "proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `service: payments
listen: %s
admin: %s
hosts: [localhost]
upstream: http://127.0.0.1:9
trust_domain: acme.test
certificate: %s
key: %s
identity_bundle: %s
grants_bundle: %s
access_log: {path: access.jsonl}
sandbox: best_effort
`, listen, admin, filepath.Join(id, ca.FolderChain), filepath.Join(id, ca.FolderKey),
		filepath.Join(f.offline, "identity-root.crt"), filepath.Join(f.offline, "grants-root.crt")), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "notify")
	notified, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notified.Close() }() // its messages have been read
	told := func(want string) {
		t.Helper()
		_ = notified.SetReadDeadline(time.Now().Add(time.Minute)) // an open socket takes one
		buf := make([]byte, 1024)
		n, _, err := notified.ReadFrom(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
			t.Fatalf("told %q, %v; want %s", buf[:n], err, want)
		}
	}
	activate := func(more ...string) (*exec.Cmd, *bytes.Buffer) {
		args := append([]string{"-E", "NOTIFY_SOCKET=" + socket}, append(more, binary, "proxy", "--config", config)...)
		cmd := exec.CommandContext(t.Context(), "systemd-socket-activate", args...)
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.WaitDelay = time.Minute
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out
	}
	cmd, out := activate("-l", listen, "-l", admin, "--fdname", "payments:admin")
	defer func() {
		if t.Failed() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
			t.Logf("%s", out)
		}
	}()
	conn := dialUntil(t, listen)
	defer func() { _ = conn.Close() }() // what it says has been read
	told("READY=1")
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	shake := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err := shake.HandshakeContext(t.Context()); err != nil {
		t.Errorf("the connection that it was started for: %v", err)
	}
	if got := dialUntil(t, admin); got != nil {
		_ = got.Close()
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	told("RELOADING=1\nMONOTONIC_USEC=")
	told("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	told("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}

	other := closedAddress(t)
	cmd, out = activate("-l", other)
	_ = dialUntil(t, other).Close()
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "bad sockets from the service manager") {
		t.Errorf("a socket that nothing listens on: %v: %s", err, out)
	}
}

// dialUntil dials as soon as somebody listens.
func dialUntil(t *testing.T, address string) net.Conn {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		cancel()
		if err == nil {
			return conn
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
