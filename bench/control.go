package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/demo"
)

// Rounds of each figure of the control plane: the p99 of fewer than a hundred
// is their maximum.
const (
	approveRounds  = 200
	failoverRounds = 12
	revokeRounds   = 40
	expiryRounds   = 20
)

// control is a cluster of three processes on this machine's disk, with a proxy.
type control struct {
	*demo.Stage
	r          *report
	alice, bob *api.Client
	roots      *x509.CertPool
}

func benchControl(ctx context.Context, r *report) error {
	stage, err := demo.NewStage(demo.Options{Binary: r.binary, Out: r.log, Unpaced: true})
	if err != nil {
		return err
	}
	defer stage.Close()
	if err := stage.Start(ctx); err != nil {
		return err
	}
	c := &control{Stage: stage, r: r, roots: x509.NewCertPool()}
	text, err := os.ReadFile(filepath.Join(stage.Identity("alice"), "identity-bundle.pem"))
	if err != nil {
		return err
	}
	c.roots.AppendCertsFromPEM(text)
	for name, client := range map[string]**api.Client{"alice": &c.alice, "bob": &c.bob} {
		if *client, err = api.NewClient(api.ClientConfig{
			Servers: stage.Servers(), Identity: stage.Identity(name), Timeout: 2 * time.Second, RetryFor: 20 * time.Second,
		}); err != nil {
			return err
		}
		defer (*client).Close()
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"writes", c.writes},
		{"mint", c.mint},
		{"approve", c.approveToCertificate},
		{"revoke", c.revokeToCut},
		{"expiry", c.expiryToCut},
		{"failover", c.failover},
	} {
		if r.part != "" && r.part != part.name {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

func (c *control) request(ctx context.Context, d time.Duration) (api.Request, error) {
	return c.alice.CreateRequest(ctx, api.RequestInput{
		Service: "payments", Permissions: []string{"GET /stream"}, Duration: api.Duration(d), Reason: "bench",
	})
}

// key is a fresh key with its CSR, made outside of what is timed.
func key() (*ecdsa.PrivateKey, string, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, "", err
	}
	return k, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// approveToCertificate times an approver's call together with the subject's
// first fetch: two commits, one signature.
func (c *control) approveToCertificate(ctx context.Context) error {
	var took []float64
	for round := range approveRounds + 5 {
		request, err := c.request(ctx, time.Minute)
		if err != nil {
			return err
		}
		_, csr, err := key()
		if err != nil {
			return err
		}
		begin := time.Now()
		if _, err := c.bob.DecideRequest(ctx, request.ID, api.DecisionInput{Decision: "approve", Hash: request.Hash}); err != nil {
			return err
		}
		if _, err := c.alice.GrantCertificate(ctx, request.ID, csr); err != nil {
			return err
		}
		if round >= 5 { // the first ones warm up
			took = append(took, time.Since(begin).Seconds()*1e3)
		}
	}
	c.r.figure("control.approve_to_cert.p99_ms", quantile(took, 0.99), "ms")
	return nil
}

// failover times from SIGKILL of the leader to the next acknowledged write, as
// a client sees it.
func (c *control) failover(ctx context.Context) error {
	var took []float64
	for range failoverRounds {
		cluster, err := c.bob.Cluster(ctx)
		if err != nil {
			return err
		}
		begin := time.Now()
		c.KillNode(cluster.Leader)
		request, err := c.request(ctx, time.Minute)
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin).Seconds()*1e3)
		if _, err := c.alice.CancelRequest(ctx, request.ID); err != nil {
			return err
		}
		if err := c.StartNodes(ctx, cluster.Leader); err != nil {
			return err
		}
	}
	c.r.figure("control.failover.p99_ms", quantile(took, 0.99), "ms")
	return nil
}

// open follows the live stream through the proxy under a fresh grant.
func (c *control) open(ctx context.Context, d time.Duration) (id string, notAfter time.Time, body io.ReadCloser, err error) {
	request, err := c.request(ctx, d)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	if _, err := c.bob.DecideRequest(ctx, request.ID, api.DecisionInput{Decision: "approve", Hash: request.Hash}); err != nil {
		return "", time.Time{}, nil, err
	}
	k, csr, err := key()
	if err != nil {
		return "", time.Time{}, nil, err
	}
	minted, err := c.alice.GrantCertificate(ctx, request.ID, csr)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	cert := tls.Certificate{PrivateKey: k}
	for block, rest := pem.Decode([]byte(minted.Certificate)); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: c.roots, Certificates: []tls.Certificate{cert},
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.ProxyAddress()+"/stream", nil)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return "", time.Time{}, nil, errors.Join(fmt.Errorf("GET /stream: %s", resp.Status), resp.Body.Close())
	}
	return request.ID, minted.NotAfter, resp.Body, nil
}

// ended reads a stream to its end and returns when that was.
func ended(body io.ReadCloser) time.Time {
	defer func() { _ = body.Close() }()
	for r := bufio.NewReader(body); ; {
		if _, err := r.ReadString('\n'); err != nil {
			return time.Now()
		}
	}
}

// revokeToCut times from the start of the revoking call to the read error on
// the live stream: a commit, the feed, the cut.
func (c *control) revokeToCut(ctx context.Context) error {
	var took []float64
	for range revokeRounds {
		id, _, body, err := c.open(ctx, time.Minute)
		if err != nil {
			return err
		}
		cut := make(chan time.Time, 1)
		go func() { cut <- ended(body) }()
		begin := time.Now()
		if _, err := c.bob.RevokeGrant(ctx, id, "bench"); err != nil {
			return err
		}
		select {
		case at := <-cut:
			took = append(took, at.Sub(begin).Seconds()*1e3)
		case <-time.After(10 * time.Second):
			return errors.New("a revoked grant's stream goes on")
		}
	}
	c.r.figure("revoke.cut.p99_ms", quantile(took, 0.99), "ms")
	return nil
}

// expiryToCut times how far from NotAfter the read error on a live stream is.
func (c *control) expiryToCut(ctx context.Context) error {
	var mu sync.Mutex
	var took []float64
	var streams sync.WaitGroup
	for range expiryRounds {
		_, notAfter, body, err := c.open(ctx, 4*time.Second)
		if err != nil {
			return err
		}
		streams.Go(func() {
			late := ended(body).Sub(notAfter).Seconds() * 1e3
			mu.Lock()
			defer mu.Unlock()
			took = append(took, late)
		})
	}
	streams.Wait()
	slices.Sort(took)
	c.r.note("expiry.cut: %.0f to %.0f ms after NotAfter", took[0], took[len(took)-1])
	c.r.figure("expiry.cut.p99_ms", quantile(took, 0.99), "ms")
	return nil
}
