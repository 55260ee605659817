package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// caller is an HTTP client that presents the certificate in a folder. It knows
// nothing of Hallpass either: any mutual TLS client would do.
type caller struct {
	http     *http.Client
	base     string
	notAfter atomic.Int64 // unix seconds, of the certificate last put on the wire
}

// newCaller presents the identity or grant certificate in folder to the proxy.
func (p *place) newCaller(folder string) (*caller, error) {
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(folder, "identity-bundle.pem"))
	if err != nil {
		return nil, err
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: identity-bundle.pem holds no certificate", folder)
	}
	c := &caller{base: "https://" + p.proxy}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
			if err != nil {
				return nil, err
			}
			leaf, err := x509.ParseCertificate(pair.Certificate[0]) // the bytes that go on the wire
			if err != nil {
				return nil, err
			}
			c.notAfter.Store(leaf.NotAfter.Unix())
			return &pair, nil
		},
	}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	return c, nil
}

// refusal is the proxy's problem document.
type refusal struct {
	Status  int    `json:"status"`
	Title   string `json:"title"`
	Detail  string `json:"detail"`
	Command string `json:"command"`
}

// call makes one request and returns its status, body and, for a refusal, what
// the proxy said.
func (c *caller) call(ctx context.Context, method, path string) (int, string, refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return 0, "", refusal{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", refusal{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, "", refusal{}, err
	}
	var said refusal
	if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.Unmarshal(body, &said); err != nil {
			return 0, "", refusal{}, fmt.Errorf("%s %s: problem document: %w", method, path, err)
		}
	}
	return resp.StatusCode, string(body), said, nil
}

// want is call with the one status that is right.
func (c *caller) want(ctx context.Context, status int, method, path string) (refusal, error) {
	got, body, said, err := c.call(ctx, method, path)
	if err != nil {
		return said, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if got != status {
		return said, fmt.Errorf("%s %s: status %d where %d is right: %s", method, path, got, status, body)
	}
	return said, nil
}

// cut is how a live stream ended.
type cut struct {
	at       time.Time // when reading failed
	notAfter time.Time // of the certificate that the stream's connection presented
	events   int
	err      error
}

// follow opens the live stream and reports, once, when and how it was cut.
func (c *caller) follow(ctx context.Context) (<-chan cut, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/stream", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req) //nolint:bodyclose // the reader of the stream closes it
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("GET /stream: %s", resp.Status), resp.Body.Close())
	}
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() {
		return nil, errors.Join(errors.New("GET /stream: ended before its first event"), lines.Err())
	}
	ended := make(chan cut, 1)
	go func() {
		defer func() { _ = resp.Body.Close() }()
		n := 1
		for lines.Scan() {
			n++
		}
		ended <- cut{at: time.Now(), notAfter: time.Unix(c.notAfter.Load(), 0), events: n / 2, err: lines.Err()}
	}()
	return ended, nil
}
