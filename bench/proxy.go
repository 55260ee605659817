package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// side is one of the two servers of a comparison.
type side struct {
	name    string
	process *process
	address string
}

// benchProxy compares the proxy with nginx: mutual TLS in, HTTP/1.1 out to the
// same upstream, an access log written by both.
func benchProxy(ctx context.Context, r *report) error {
	names := []string{
		"proxy.conn.cpu_vs_nginx", "proxy.http1.cpu_vs_nginx.saturated",
		"proxy.http1.cpu_vs_nginx.paced", "proxy.http1.p50_vs_nginx.paced",
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		r.note("nginx is not here: bench/setup installs it")
		r.missing(names...)
		return nil
	}
	version, _ := exec.CommandContext(ctx, nginx, "-v").CombinedOutput()
	r.note("%s", strings.TrimSpace(string(version)))
	certs, err := newPKI(r.dir)
	if err != nil {
		return err
	}
	upstream, err := startUpstream(ctx)
	if err != nil {
		return err
	}
	defer upstream.process.stop()
	ours, err := startHallpass(ctx, r, certs, upstream.address)
	if err != nil {
		return err
	}
	defer ours.process.stop()
	theirs, err := startNginx(ctx, r, nginx, certs, upstream.address)
	if err != nil {
		return err
	}
	defer theirs.process.stop()
	return compareAll(ctx, r, certs, ours, theirs)
}

func compareAll(ctx context.Context, r *report, certs *pki, ours, theirs side) error {
	conf := certs.clientTLS("http/1.1")
	kinds := []struct {
		name string
		p50  string
		load func(s side) (work, error)
	}{
		{"proxy.conn.cpu_vs_nginx", "", func(s side) (work, error) {
			return connect(ctx, s.address, conf, 4, 2*time.Second)
		}},
		{"proxy.http1.cpu_vs_nginx.saturated", "", func(s side) (work, error) {
			return saturate(ctx, s.address, conf, 16, 2*time.Second)
		}},
		{"proxy.http1.cpu_vs_nginx.paced", "proxy.http1.p50_vs_nginx.paced", func(s side) (work, error) {
			return pace(ctx, s.address, conf, 16, 3000, 2*time.Second)
		}},
	}
	for _, kind := range kinds {
		var cpu, p50 []float64
		for turn := range r.pairs + 1 {
			a, err := measure(ours, kind.load)
			if err != nil {
				return err
			}
			b, err := measure(theirs, kind.load)
			if err != nil {
				return err
			}
			if turn == 0 {
				continue // warm-up
			}
			cpu = append(cpu, a.cpu/b.cpu)
			p50 = append(p50, a.p50/b.p50)
			r.note("%s: ours %.1f µs CPU each, nginx %.1f µs", kind.name, a.cpu*1e6, b.cpu*1e6)
		}
		r.figure(kind.name, median(cpu), "ratio")
		if kind.p50 != "" {
			r.figure(kind.p50, median(p50), "ratio")
		}
	}
	return nil
}

// cost is what one piece of work took.
type cost struct{ cpu, p50 float64 } // seconds

func measure(s side, load func(side) (work, error)) (cost, error) {
	before, err := s.process.cpu()
	if err != nil {
		return cost{}, err
	}
	done, err := load(s)
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w; it said: %s", s.name, err, s.process.stderr.String())
	}
	after, err := s.process.cpu()
	if err != nil {
		return cost{}, err
	}
	if done.requests == 0 {
		return cost{}, fmt.Errorf("%s: nothing was answered", s.name)
	}
	latencies := make([]float64, len(done.latencies))
	for i, l := range done.latencies {
		latencies[i] = l.Seconds()
	}
	return cost{cpu: (after - before).Seconds() / float64(done.requests), p50: median(latencies)}, nil
}

func startHallpass(ctx context.Context, r *report, certs *pki, upstream string) (side, error) {
	address, err := freeAddress()
	if err != nil {
		return side{}, err
	}
	config := fmt.Sprintf(`service: %s
listen: %s
protocol: http
hosts: [localhost]
upstream: http://%s
trust_domain: %s
grant_trust_domain: %s
certificate: %s
key: %s
identity_bundle: %s
grants_bundle: %s
access_log: {path: %s}
`, benchService, address, upstream, identityDomain, grantDomain,
		certs.path("cert.pem"), certs.path("key.pem"), certs.path("identity-bundle.pem"), certs.path("grants-bundle.pem"),
		filepath.Join(r.dir, "access.jsonl"))
	file := filepath.Join(r.dir, "proxy.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return side{}, err
	}
	p, err := start(ctx, r.binary, "proxy", "--config", file)
	if err != nil {
		return side{}, err
	}
	if err := p.waitFor(ctx, address); err != nil {
		p.stop()
		return side{}, err
	}
	return side{name: "hallpass", process: p, address: address}, nil
}

func startNginx(ctx context.Context, r *report, nginx string, certs *pki, upstream string) (side, error) {
	address, err := freeAddress()
	if err != nil {
		return side{}, err
	}
	config := fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log warn;
user root;
events { worker_connections 4096; }
http {
  access_log %[1]s/nginx-access.log combined;
  client_body_temp_path %[1]s/nginx-body; proxy_temp_path %[1]s/nginx-proxy;
  fastcgi_temp_path %[1]s/nginx-f; uwsgi_temp_path %[1]s/nginx-u; scgi_temp_path %[1]s/nginx-s;
  keepalive_requests 10000000;
  upstream service { server %[2]s; keepalive 64; keepalive_requests 10000000; }
  server {
    listen %[3]s ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate %[4]s; ssl_certificate_key %[5]s;
    ssl_client_certificate %[6]s; ssl_verify_client on; ssl_verify_depth 3;
    ssl_session_tickets off; ssl_session_cache off;
    location /accounts/ {
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-Client-Cert $ssl_client_s_dn;
    }
    location / { return 403; }
  }
}
`, r.dir, upstream, address, certs.path("cert.pem"), certs.path("key.pem"), certs.path("grants-bundle.pem"))
	file := filepath.Join(r.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return side{}, err
	}
	p, err := start(ctx, nginx, "-c", file, "-p", r.dir)
	if err != nil {
		return side{}, err
	}
	if err := p.waitFor(ctx, address); err != nil {
		p.stop()
		return side{}, err
	}
	return side{name: "nginx", process: p, address: address}, nil
}

// upstreamWord as the first argument makes this program the upstream, so that
// the upstream's time is not counted as anyone else's.
const upstreamWord = "upstream"

func startUpstream(ctx context.Context) (side, error) {
	address, err := freeAddress()
	if err != nil {
		return side{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return side{}, err
	}
	p, err := start(ctx, self, upstreamWord, address)
	if err != nil {
		return side{}, err
	}
	if err := p.waitFor(ctx, address); err != nil {
		p.stop()
		return side{}, err
	}
	return side{name: upstreamWord, process: p, address: address}, nil
}

func upstreamMain(args []string) int {
	if len(args) != 1 {
		return 2
	}
	body := []byte(strings.Repeat("x", 1024))
	server := &http.Server{
		Addr:              args[0],
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(body) // the client may be gone
		}),
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return 1
	}
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return 1
	}
	return 0
}
