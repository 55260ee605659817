package testenv

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"sync"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/proxy"
)

// ProxyOptions says what a proxy stands in front of.
type ProxyOptions struct {
	Upstream string // as in the proxy's configuration: http://…, h2c://…, tcp://…, unix:///…
	Protocol string // http, the default, or tcp
	// Change gets a last word on the settings.
	Change func(*proxy.Settings)
}

// Proxy is the data plane of one service.
type Proxy struct {
	Service string
	Dir     string // with access.jsonl and revocations.json
	env     *Env
	set     proxy.Settings
	address string

	mu     sync.Mutex // guards what follows
	cancel context.CancelFunc
	ended  chan struct{}
}

// Proxy runs a proxy for a service until the test ends.
func (e *Env) Proxy(service string, o ProxyOptions) *Proxy {
	e.t.Helper()
	folder := e.Folder("service/" + service)
	p := &Proxy{Service: service, Dir: e.t.TempDir(), env: e, address: e.freeAddress()}
	p.set = proxy.Settings{
		Service: service, Listen: p.address, Protocol: o.Protocol, Upstream: o.Upstream,
		TrustDomain: TrustDomain, GrantTrustDomain: "grants." + TrustDomain,
		Certificate:    filepath.Join(folder, ca.FolderChain),
		Key:            filepath.Join(folder, ca.FolderKey),
		IdentityBundle: filepath.Join(folder, ca.FolderIdentityBundle),
		GrantsBundle:   filepath.Join(folder, ca.FolderGrantsBundle),
		Revocation:     proxy.RevocationSettings{Servers: e.Servers(), StateFile: filepath.Join(p.Dir, "revocations.json")},
		AccessLog:      proxy.AccessLogSettings{Path: p.AccessLog()},
	}
	if o.Protocol != "tcp" {
		p.set.Hosts = []string{"localhost", "127.0.0.1"}
	}
	if o.Change != nil {
		o.Change(&p.set)
	}
	p.Start()
	e.t.Cleanup(p.Stop)
	return p
}

// Start runs the proxy again on its old files and address.
func (p *Proxy) Start() {
	p.env.t.Helper()
	px, err := proxy.New(proxy.Config{Settings: p.set, Logger: p.env.log, TracerProvider: p.env.opts.Tracer})
	p.env.must(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.env.t.Context()))
	ended := make(chan struct{})
	l := p.env.listen(p.address)
	go func() {
		defer close(ended)
		if err := px.Serve(ctx, l); err != nil {
			p.env.log.ErrorContext(ctx, "proxy ended", "service", p.Service, "error", err.Error())
		}
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel, p.ended = cancel, ended
}

// Stop drains the proxy and ends it. A stopped proxy stays stopped.
func (p *Proxy) Stop() {
	p.mu.Lock()
	cancel, ended := p.cancel, p.ended
	p.cancel = nil
	p.mu.Unlock()
	if cancel != nil {
		cancel()
		<-ended
	}
}

// Upstream is what the proxy stands in front of, as in its settings.
func (p *Proxy) Upstream() string { return p.set.Upstream }

// Address is where the proxy listens, host:port.
func (p *Proxy) Address() string { return p.address }

// AccessLog is the file of its access records.
func (p *Proxy) AccessLog() string { return filepath.Join(p.Dir, "access.jsonl") }

// URL is the address of a path behind the proxy.
func (p *Proxy) URL(path string) string {
	_, port, err := net.SplitHostPort(p.address)
	p.env.must(err)
	return "https://localhost:" + port + path
}

// TLS is the configuration of a client that presents cert.
func (e *Env) TLS(cert *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: e.roots.identity, ServerName: "localhost",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}

// HTTPClient is an HTTP client that presents cert; it speaks HTTP/2 when it can.
func (e *Env) HTTPClient(cert *tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: e.TLS(cert), ForceAttemptHTTP2: true}
	e.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
