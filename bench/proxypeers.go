package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// side is one of the servers of a comparison.
type side struct {
	name    string
	process *process
	address string
}

// The kinds of service that a front stands before.
const (
	kindHTTP = "http" // HTTP/1.1 or HTTP/2 in, HTTP/1.1 out
	kindGRPC = "grpc" // HTTP/2 in, HTTP/2 without TLS out
	kindTCP  = "tcp"  // TLS in, plain bytes out
)

// A front is a server to be compared: it takes mutual TLS in, with the bench's
// certificates and no tickets, and asks the upstream for what it lets through.
type front struct {
	name   string
	kinds  []string
	binary func(r *report) (string, bool)
	start  func(ctx context.Context, f fronted) (*process, error)
}

// fronted is what a front is started with.
type fronted struct {
	r                              *report
	certs                          *pki
	kind, binary, address, backend string
	file                           string // prefix of the files it may write
}

func fronts() []front {
	return []front{
		{"hallpass", []string{kindHTTP, kindGRPC, kindTCP}, func(r *report) (string, bool) { return r.binary, true }, startHallpass},
		{"nginx", []string{kindHTTP, kindGRPC, kindTCP}, installed("nginx", "-v"), startNginx},
		{"haproxy", []string{kindHTTP, kindGRPC, kindTCP}, installed("haproxy", "-v"), startHAProxy},
		{"caddy", []string{kindHTTP, kindGRPC}, func(r *report) (string, bool) { return r.peer("caddy") }, startCaddy},
		{"reverseproxy", []string{kindHTTP, kindGRPC}, func(*report) (string, bool) { p, err := os.Executable(); return p, err == nil }, startReverseProxy},
	}
}

// installed finds a program of Debian's, and says which version it is.
func installed(name string, version ...string) func(r *report) (string, bool) {
	return func(r *report) (string, bool) {
		path, err := exec.LookPath(name)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + name)
		}
		if err != nil {
			r.note("%s is not here: bench/setup installs it", name)
			return "", false
		}
		out, _ := exec.Command(path, version...).CombinedOutput()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		r.note("%s: %s", name, first)
		return path, true
	}
}

// startAll starts what is here of one kind, ours first.
func startAll(ctx context.Context, r *report, certs *pki, kind, backend string) (sides []side, stop func(), err error) {
	stop = func() {
		for _, s := range sides {
			s.process.stop()
		}
	}
	for i, f := range fronts() {
		if i > 0 && r.against != "" && !slices.Contains(strings.Split(r.against, ","), f.name) {
			continue
		}
		binary, ok := f.binary(r)
		if !ok || !slices.Contains(f.kinds, kind) {
			continue
		}
		address, err := freeAddress()
		if err != nil {
			return nil, stop, err
		}
		p, err := f.start(ctx, fronted{r, certs, kind, binary, address, backend, filepath.Join(r.dir, f.name+"-"+kind)})
		if err != nil {
			stop()
			return nil, stop, err
		}
		if p == nil {
			continue // it cannot do this here, and has said so
		}
		if err := p.waitFor(ctx, address); err != nil {
			p.stop()
			if len(sides) == 0 {
				return nil, stop, fmt.Errorf("%s: %w", f.name, err)
			}
			r.note("%s does not start, and is left out: %v", f.name, err)
			continue
		}
		sides = append(sides, side{f.name, p, address})
	}
	return sides, stop, nil
}

// configured writes a configuration and starts a program with it.
func (f fronted) configured(ctx context.Context, ext, config string, args ...string) (*process, error) {
	file := f.file + ext
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "CONFIG", file)
	}
	return start(ctx, f.binary, args...)
}

func startHallpass(ctx context.Context, f fronted) (*process, error) {
	protocol, hosts, scheme := "http", "hosts: [localhost]", "http"
	switch f.kind {
	case kindGRPC:
		scheme = "h2c"
	case kindTCP:
		protocol, hosts, scheme = "tcp", "", "tcp"
	}
	return f.configured(ctx, ".yaml", fmt.Sprintf(`service: %s
listen: %s
protocol: %s
%s
upstream: %s://%s
trust_domain: %s
grant_trust_domain: %s
certificate: %s
key: %s
identity_bundle: %s
grants_bundle: %s
access_log: {path: %s.jsonl}
`, benchService, f.address, protocol, hosts, scheme, f.backend, identityDomain, grantDomain,
		f.certs.path("cert.pem"), f.certs.path("key.pem"), f.certs.path("identity-bundle.pem"), f.certs.path("grants-bundle.pem"), f.file), "proxy", "--config", "CONFIG")
}

// nginxStream is where Debian's libnginx-mod-stream puts it.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

func startNginx(ctx context.Context, f fronted) (*process, error) {
	tls := fmt.Sprintf(`ssl_protocols TLSv1.3;
    ssl_certificate %s; ssl_certificate_key %s;
    ssl_client_certificate %s; ssl_verify_client on; ssl_verify_depth 3;
    ssl_session_tickets off; ssl_session_cache off;`, f.certs.path("cert.pem"), f.certs.path("key.pem"), f.certs.path("grants-bundle.pem"))
	head := fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s.pid;
error_log %[1]s-error.log warn;
user root;
events { worker_connections 8192; }
`, f.file)
	if f.kind == kindTCP {
		if _, err := os.Stat(nginxStream); err != nil {
			f.r.note("nginx has no stream module here: bench/setup installs it")
			return nil, nil //nolint:nilnil,nilerr // startAll leaves it out
		}
		return f.configured(ctx, ".conf", "load_module "+nginxStream+";\n"+head+fmt.Sprintf(`stream {
  log_format line '$remote_addr $time_local $status $bytes_sent $bytes_received $session_time';
  access_log %s-access.log line;
  server {
    listen %s ssl;
    %s
    proxy_buffer_size 64k;
    proxy_pass %s;
  }
}
`, f.file, f.address, tls, f.backend), "-c", "CONFIG", "-p", f.r.dir)
	}
	location := `location /accounts/ {
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-Client-Cert $ssl_client_s_dn;
    }`
	listen := "ssl"
	if f.kind == kindGRPC {
		location = fmt.Sprintf(`location %s {
      grpc_pass grpc://service; grpc_set_header X-Forwarded-Client-Cert $ssl_client_s_dn;
    }`, benchMethod)
	}
	return f.configured(ctx, ".conf", head+fmt.Sprintf(`http {
  access_log %[1]s-access.log combined;
  client_body_temp_path %[1]s-body; proxy_temp_path %[1]s-proxy;
  fastcgi_temp_path %[1]s-f; uwsgi_temp_path %[1]s-u; scgi_temp_path %[1]s-s;
  keepalive_requests 100000000; keepalive_timeout 1h;
  upstream service { server %[2]s; keepalive 64; keepalive_requests 100000000; }
  server {
    listen %[3]s %[4]s http2;
    %[5]s
    %[6]s
    location / { return 403; }
  }
}
`, f.file, f.backend, f.address, listen, tls, location), "-c", "CONFIG", "-p", f.r.dir)
}

func startHAProxy(ctx context.Context, f fronted) (*process, error) {
	pair, err := f.certs.joined()
	if err != nil {
		return nil, err
	}
	mode, alpn, server := "http", "alpn h2,http/1.1", ""
	rules := `  option httplog
  http-request deny unless { path_beg /accounts/ } or { path ` + benchMethod + ` }
  http-request set-header X-Forwarded-Client-Cert %[ssl_c_s_dn]
  http-reuse always`
	switch f.kind {
	case kindGRPC:
		server = "proto h2"
	case kindTCP:
		mode, alpn, rules = "tcp", "", "  option tcplog"
	}
	log, err := os.Create(f.file + "-access.log")
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the program has its own
	return f.configuredTo(ctx, log, ".cfg", fmt.Sprintf(`global
  nbthread 1
  maxconn 8192
  log stdout format raw local0
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
defaults
  mode %s
  log global
  timeout client 1h
  timeout server 1h
  timeout connect 5s
listen front
  bind %s ssl crt %s ca-file %s verify required %s
%s
  server upstream %s %s
`, mode, f.address, pair, f.certs.path("grants-bundle.pem"), alpn, rules, f.backend, server), "-db", "-f", "CONFIG")
}

func (f fronted) configuredTo(ctx context.Context, out *os.File, ext, config string, args ...string) (*process, error) {
	file := f.file + ext
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "CONFIG", file)
	}
	return startTo(ctx, out, f.binary, args...)
}

func startCaddy(ctx context.Context, f fronted) (*process, error) {
	match, upstream := "/accounts/*", f.backend
	if f.kind == kindGRPC {
		match, upstream = benchMethod, "h2c://"+f.backend
	}
	return f.configured(ctx, ".caddyfile", fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	storage file_system %[1]s-storage
}
https://localhost:%[2]s {
	bind 127.0.0.1
	tls %[3]s %[4]s {
		protocols tls1.3
		client_auth {
			mode require_and_verify
			trust_pool file %[5]s
		}
	}
	log {
		output file %[1]s-access.log
	}
	handle %[6]s {
		reverse_proxy %[7]s {
			header_up X-Forwarded-Client-Cert {http.request.tls.client.subject}
			transport http {
				keepalive_idle_conns_per_host 64
			}
		}
	}
	respond 403
}
`, f.file, portOf(f.address), f.certs.path("cert.pem"), f.certs.path("key.pem"), f.certs.path("grants-bundle.pem"), match, upstream), "run", "--config", "CONFIG", "--adapter", "caddyfile")
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

func startReverseProxy(ctx context.Context, f fronted) (*process, error) {
	return start(ctx, f.binary, reverseProxyWord, f.kind, f.address, f.backend, f.certs.dir, f.file+"-access.log")
}
