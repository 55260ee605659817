//go:build integration

package proxy

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a program for at most patience and returns all it printed.
func run(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %v did not end: %s", name, args, out.String())
	}
	if err != nil {
		return out.String() + "\n" + err.Error()
	}
	return out.String()
}

// identityDir writes what programs take: cert.pem, key.pem, ca.pem.
func (e *env) identityDir(perms ...string) string {
	e.t.Helper()
	dir := e.t.TempDir()
	writePair(e.t, dir, e.pki.grant(time.Hour, perms...))
	writeFile(e.t, filepath.Join(dir, "ca.pem"), pemCerts(e.pki.idRoot.cert))
	return dir
}

// TestCurl: a plain curl, given the grant certificate and the identity root.
func TestCurl(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	dir := e.identityDir("GET,POST /accounts/**")
	curl := func(args ...string) string {
		base := []string{"-sS", "-i", "--cacert", dir + "/ca.pem", "--cert", dir + "/cert.pem", "--key", dir + "/key.pem", "--path-as-is"}
		return run(t, "", "curl", append(base, args...)...)
	}
	url := "https://" + e.addr
	for _, version := range []string{"--http1.1", "--http2"} {
		if got := curl(version, url+"/accounts/7?a=b"); !strings.Contains(got, `"Target":"/accounts/7?a=b"`) {
			t.Errorf("%s: %s", version, got)
		}
		if got := curl(version, "-d", strings.Repeat("x", 5000), "-H", "Expect: 100-continue", url+"/accounts/7"); !strings.Contains(got, strings.Repeat("x", 5000)) {
			t.Errorf("%s upload: %s", version, got)
		}
		if got := curl(version, url+"/admin"); !strings.Contains(got, "hallpass request create payments --allow 'GET /admin' --for 30m --reason '…'") {
			t.Errorf("%s denied: %s", version, got)
		}
		for _, path := range []string{"/accounts/../admin", "/accounts/%2e%2e/admin", "/accounts%2fx", "/accounts//x", "/accounts/..;/x"} {
			if got := curl(version, url+path); !strings.Contains(got, " 400 ") {
				t.Errorf("%s %s: %s", version, path, got)
			}
		}
		if got := curl(version, "-X", "TRACE", url+"/accounts/7"); !strings.Contains(got, " 400 ") {
			t.Errorf("%s TRACE: %s", version, got)
		}
		if got := curl(version, "-H", "X-HTTP-Method-Override: DELETE", "-X", "POST", url+"/accounts/7"); !strings.Contains(got, " 400 ") {
			t.Errorf("%s override: %s", version, got)
		}
		if got := curl(version, "-H", "Host: evil.test", url+"/accounts/7"); !strings.Contains(got, " 421 ") {
			t.Errorf("%s host: %s", version, got)
		}
	}
	if got := curl("--http1.1", "-H", "Connection: Upgrade, HTTP2-Settings", "-H", "Upgrade: h2c", "-H", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", url+"/accounts/7"); !strings.Contains(got, " 400 ") {
		t.Errorf("h2c: %s", got)
	}
	if got := run(t, "", "curl", "-sS", "--cacert", dir+"/ca.pem", url+"/accounts/7"); !strings.Contains(got, "exit status") {
		t.Errorf("without a certificate: %s", got)
	}
}

// TestCurlFollowsTheCommand's words: what the 403 prints is what a shell runs.
func TestCurlFollowsTheCommand(t *testing.T) {
	e := start(t, options{})
	dir := e.identityDir("GET /accounts/**")
	script := `
hallpass() { printf '%s|' "$@"; }
command=$(curl -sS --path-as-is --cacert ca.pem --cert cert.pem --key key.pem "$1" | sed -n 's/.*"command":"\([^"]*\)".*/\1/p')
eval "$command"`
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script, "bash", "https://"+e.addr+"/x'$(touch%09pwned)';touch$IFS-pwned")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil && len(out) > 0 {
		t.Errorf("a path with a tab got a command: %s", out)
	}
	cmd = exec.CommandContext(t.Context(), "bash", "-c", script, "bash", "https://"+e.addr+"/x'$(touch$IFS-pwned)'&touch%20pwned")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if want := "request|create|payments|--allow|GET /x%27$(touch$IFS-pwned)%27&touch%20pwned|--for|30m|--reason|…|"; err != nil || string(out) != want {
		t.Errorf("%s %v, want %s", out, err, want)
	}
	for _, name := range []string{"pwned", "-pwned"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Error("the path ran as a command")
		}
	}
}

// TestOpenSSL: no ticket to save, none taken, TLS 1.3 only, an alert for who may not.
func TestOpenSSL(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	dir := e.identityDir("GET /**")
	base := []string{"s_client", "-connect", e.addr, "-servername", "localhost", "-CAfile", dir + "/ca.pem", "-cert", dir + "/cert.pem", "-cert_chain", dir + "/cert.pem", "-key", dir + "/key.pem", "-alpn", "http/1.1", "-ign_eof"}
	request := "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
	openssl := func(args ...string) string {
		return run(t, request, "openssl", append(append([]string{}, base...), args...)...)
	}

	session := filepath.Join(dir, "session")
	got := openssl("-sess_out", session)
	if !strings.Contains(got, "HTTP/1.1 200") || !strings.Contains(got, "Verification: OK") {
		t.Fatalf("%s", got)
	}
	if strings.Contains(got, "Post-Handshake New Session Ticket") || strings.Contains(got, "TLS session ticket:") {
		t.Errorf("a ticket was issued: %s", got)
	}
	if _, err := os.Stat(session); err == nil {
		if got := openssl("-sess_in", session); strings.Contains(got, "Reused, ") {
			t.Errorf("a session was resumed: %s", got)
		}
	}
	if got := openssl("-tls1_2"); !strings.Contains(got, "alert protocol version") {
		t.Errorf("TLS 1.2: %s", got)
	}
	expired := e.pki.grant(-time.Minute, "GET /**")
	writePair(t, dir, expired)
	if got := openssl(); !strings.Contains(got, "alert bad certificate") || strings.Contains(got, "HTTP/1.1") {
		t.Errorf("expired: %s", got)
	}
	if got := run(t, request, "openssl", "s_client", "-connect", e.addr, "-servername", "localhost", "-ign_eof"); !strings.Contains(got, "alert certificate required") {
		t.Errorf("no certificate: %s", got)
	}
	if got := openssl("-alpn", "spdy/3"); !strings.Contains(got, "alert no application protocol") {
		t.Errorf("ALPN: %s", got)
	}
}
