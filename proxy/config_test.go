package proxy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const goodYAML = `service: payments
listen: 127.0.0.1:9443
protocol: http
hosts: [payments.acme.test, localhost]
upstream: http://127.0.0.1:8080
trust_domain: acme.test
grant_trust_domain: grants.acme.test
certificate: svid/cert.pem
key: svid/key.pem
identity_bundle: svid/identity-bundle.pem
grants_bundle: /etc/grants-bundle.pem
revocation: {servers: ["https://127.0.0.1:8443"], state_file: revocations.json, max_staleness: 0s}
access_log: {path: access.jsonl, on_failure: deny}
admin: 127.0.0.1:9901
drain: {before_expiry: 5s, shutdown: 30s}
limits:
  max_connections: 100
  idle_timeout: 1m30s
`

// TestLoadSettings reads a whole file; relative paths start at its folder.
func TestLoadSettings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "proxy.yaml")
	writeFile(t, path, []byte(goodYAML))
	s, err := LoadSettings(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	want := Settings{
		Service: "payments", Listen: "127.0.0.1:9443", Protocol: "http", Hosts: []string{"payments.acme.test", "localhost"},
		Upstream: "http://127.0.0.1:8080", TrustDomain: testTD, GrantTrustDomain: testGrantTD,
		Certificate: dir + "/svid/cert.pem", Key: dir + "/svid/key.pem", IdentityBundle: dir + "/svid/identity-bundle.pem", GrantsBundle: "/etc/grants-bundle.pem",
		Revocation: RevocationSettings{Servers: []string{"https://127.0.0.1:8443"}, StateFile: dir + "/revocations.json"},
		AccessLog:  AccessLogSettings{Path: dir + "/access.jsonl", OnFailure: "deny"}, Admin: "127.0.0.1:9901",
		Drain:  DrainSettings{BeforeExpiry: 5 * time.Second, Shutdown: 30 * time.Second},
		Limits: LimitSettings{MaxConnections: 100, IdleTimeout: 90 * time.Second},
	}
	if diff := cmp.Diff(want, s, cmpopts.IgnoreUnexported(Settings{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestBadSettings: every mistake is told with its file, line and key.
func TestBadSettings(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"unknown key", "hosts:", "hots:", `proxy.yaml:4: unknown key "hots"`},
		{"unknown nested key", "max_connections: 100", "max_conns: 100", `proxy.yaml:17: unknown key "max_conns"`},
		{"repeated key", "protocol: http", "service: orders", `proxy.yaml:3: mapping key "service" already defined at line 1`},
		{"wrong type", "hosts: [payments.acme.test, localhost]", "hosts: 5", "proxy.yaml:4: cannot unmarshal"},
		{"no YAML", "service: payments", "service: [", "proxy.yaml:"},
		{"second document", "admin: 127.0.0.1:9901", "---\nadmin: 127.0.0.1:9901", "a second document"},
		{"duration without unit", "idle_timeout: 1m30s", "idle_timeout: 90", "proxy.yaml:18: cannot unmarshal"},
		{"negative duration", "before_expiry: 5s", "before_expiry: -5s", "proxy.yaml:15: drain.before_expiry: -5s is negative"},
		{"bad service", "service: payments", "service: Payments", `proxy.yaml:1: service: "Payments" is no service name`},
		{"host with a port", "[payments.acme.test, localhost]", "[payments.acme.test, \"localhost:80\"]", "proxy.yaml:4: hosts[1]:"},
		{"upper-case host", "[payments.acme.test, localhost]", "[Payments.acme.test]", "proxy.yaml:4: hosts[0]:"},
		{"no hosts", "[payments.acme.test, localhost]", "[]", "proxy.yaml:4: hosts: is empty"},
		{"protocol", "protocol: http", "protocol: udp", `proxy.yaml:3: protocol: "udp" is neither`},
		{"upstream with a path", "http://127.0.0.1:8080", "http://127.0.0.1:8080/api", "proxy.yaml:5: upstream: want"},
		{"upstream with a user", "http://127.0.0.1:8080", "http://u:p@127.0.0.1:8080", "proxy.yaml:5: upstream: want"},
		{"upstream without a port", "http://127.0.0.1:8080", "http://127.0.0.1", "proxy.yaml:5: upstream: want"},
		{"tcp upstream of http", "http://127.0.0.1:8080", "tcp://127.0.0.1:8080", "proxy.yaml:5: upstream: want"},
		{"http upstream of tcp", "protocol: http", "protocol: tcp", "proxy.yaml:5: upstream: want tcp://"},
		{"trust domain as an ID", "trust_domain: acme.test", "trust_domain: spiffe://acme.test", "proxy.yaml:6: trust_domain:"},
		{"request page in the clear", "protocol: http", "request_url: http://access.acme.test/ask", `proxy.yaml:3: request_url: "http://access.acme.test/ask" is no https://HOST/PATH`},
		{"request page with a query", "protocol: http", "request_url: https://access.acme.test/ask?a=b", "proxy.yaml:3: request_url:"},
		{"request page of a script", "protocol: http", "request_url: javascript:alert(1)", "proxy.yaml:3: request_url:"},
		{"one trust domain", "grant_trust_domain: grants.acme.test", "grant_trust_domain: acme.test", "proxy.yaml:7: grant_trust_domain: must differ"},
		{"no certificate", "certificate: svid/cert.pem", "certificate: \"\"", "proxy.yaml:8: certificate: is missing"},
		{"plain http control", "https://127.0.0.1:8443", "http://127.0.0.1:8443", "proxy.yaml:12: revocation.servers[0]:"},
		{"no state file", "state_file: revocations.json, ", "", "revocation.state_file: is missing"},
		{"staleness without servers", `servers: ["https://127.0.0.1:8443"], state_file: revocations.json, max_staleness: 0s`, "max_staleness: 10s", "revocation.max_staleness: needs revocation.servers"},
		{"staleness under the beat", "max_staleness: 0s", "max_staleness: 10ms", "proxy.yaml:12: revocation.max_staleness: is under 1s"},
		{"no access log", "path: access.jsonl, ", "", "access_log.path: is missing"},
		{"log failure", "on_failure: deny", "on_failure: ignore", `proxy.yaml:13: access_log.on_failure: "ignore"`},
		{"admin to the world", "admin: 127.0.0.1:9901", "admin: 0.0.0.0:9901", "proxy.yaml:14: admin: \"0.0.0.0:9901\" is not loopback"},
		{"admin by name", "admin: 127.0.0.1:9901", "admin: example.test:9901", "is not loopback"},
		{"balancer without a prefix", "protocol: http", "listen_proxy_protocol: {trusted: [10.0.0.0/8, 10.0.0.1]}", "proxy.yaml:3: listen_proxy_protocol.trusted[1]: \"10.0.0.1\" is no network"},
		{"balancer with host bits", "protocol: http", "listen_proxy_protocol: {trusted: [10.0.0.1/8]}", "is no network"},
		{"any balancer", "protocol: http", "listen_proxy_protocol: {trusted: [\"::/0\"]}", "proxy.yaml:3: listen_proxy_protocol.trusted[0]: \"::/0\" trusts every client"},
		{"no balancer", "protocol: http", "listen_proxy_protocol: {}", "proxy.yaml:3: listen_proxy_protocol.trusted: is empty"},
		{"header to an http upstream", "protocol: http", "upstream_proxy_protocol: v2", "proxy.yaml:3: upstream_proxy_protocol: is not for http"},
		{"header of version 1", "protocol: http", "upstream_proxy_protocol: v1", "proxy.yaml:3: upstream_proxy_protocol: \"v1\" is not v2"},
		{"negative body", "max_connections: 100", "max_body_bytes: -1", "proxy.yaml:17: limits.max_body_bytes: -1 is negative"},
		{"limit out of range", "max_connections: 100", "max_connections: -1", "proxy.yaml:17: limits.max_connections: -1 is not within"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodYAML, tt.old, tt.new, 1)
			if text == goodYAML {
				t.Fatal("nothing was replaced")
			}
			s, err := parseSettings("proxy.yaml", []byte(text))
			if err == nil {
				err = s.Check()
			}
			if !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
	for _, text := range []string{"", "\n", "# nothing\n", "---\n"} {
		s, err := parseSettings("proxy.yaml", []byte(text))
		if err == nil {
			err = s.Check()
		}
		if !errors.Is(err, ErrSettings) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := LoadSettings(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestAllMistakesAtOnce: one run, every line to be mended.
func TestAllMistakesAtOnce(t *testing.T) {
	s, err := parseSettings("proxy.yaml", []byte("service: X\nprotocol: y\nupstream: z\n"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Check()
	for _, want := range []string{"proxy.yaml:1: service", "proxy.yaml:2: protocol", "proxy.yaml:3: upstream", "trust_domain", "certificate", "key", "identity_bundle", "grants_bundle", "access_log.path", "hosts"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

// TestListenLocal: a socket is the user's own from its first moment, and nothing
// beyond this machine is listened on.
func TestListenLocal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	for _, addr := range []string{"unix:" + path, "unix://" + path} {
		ln, err := ListenLocal(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if _, err := ListenLocal(t.Context(), addr); err == nil {
			t.Error("a socket in use was taken over")
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	writeFile(t, path, nil)
	if _, err := ListenLocal(t.Context(), "unix:"+path); err == nil {
		t.Error("a file was replaced by a socket")
	}
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "example.test:80", "10.0.0.1:80", "x", ""} {
		if ln, err := ListenLocal(t.Context(), addr); !errors.Is(err, ErrNotLocal) {
			t.Errorf("%s: %v", addr, err)
			if ln != nil {
				_ = ln.Close()
			}
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "localhost:0"} {
		ln, err := ListenLocal(t.Context(), addr)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		_ = ln.Close()
	}
}
