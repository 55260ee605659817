package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
)

// client makes the API client that the global flags describe. Nothing is dialled yet.
func (a *app) client(tracers trace.TracerProvider) (*api.Client, error) {
	if len(a.servers) == 0 {
		return nil, usagef("no control node given: --server https://HOST:PORT or HALLPASS_SERVER")
	}
	if a.identity == "" {
		return nil, unauthenticatedf("no identity given: --identity FOLDER or HALLPASS_IDENTITY")
	}
	cert, err := readIdentity(a.identity)
	if err != nil {
		return nil, unauthenticatedf("identity: %w", err)
	}
	if !a.now().Before(cert.NotAfter) {
		return nil, unauthenticatedf("identity %s in %s expired at %s: get a new one",
			spiffeOf(cert), a.identity, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	c, err := api.NewClient(api.ClientConfig{Servers: a.servers, Identity: a.identity, RetryFor: a.timeout, TracerProvider: tracers})
	if err != nil {
		return nil, usagef("%w", err)
	}
	return c, nil
}

// call runs fn with a client, and closes it. The calls are traced where that is configured.
func (a *app) call(ctx context.Context, fn func(ctx context.Context, c *api.Client) error) error {
	return a.tracing(ctx, func(ctx context.Context, tracers trace.TracerProvider) error {
		return a.callAs(ctx, tracers, fn)
	})
}

// callAs is call for a command that traces by itself.
func (a *app) callAs(ctx context.Context, tracers trace.TracerProvider, fn func(ctx context.Context, c *api.Client) error) error {
	c, err := a.client(tracers)
	if err != nil {
		return err
	}
	defer c.Close()
	err = fn(ctx, c)
	if errors.Is(err, api.ErrUnauthenticated) && holdsGrant(a.identity) {
		return unauthenticatedf("%w; it is the certificate of a grant, and a grant is not an identity: give the folder of who you are", err)
	}
	return err
}

// holdsGrant reports whether a folder holds a grant's certificate.
func holdsGrant(dir string) bool {
	cert, err := readCertificate(filepath.Join(dir, ca.FolderChain))
	if err != nil || len(cert.URIs) != 1 {
		return false
	}
	td, err := spiffeid.TrustDomainFromURI(cert.URIs[0])
	if err != nil {
		return false
	}
	_, err = grant.ParseID(cert.URIs[0].String(), td)
	return err == nil
}

// readIdentity reads the certificate of an identity folder.
func readIdentity(folder string) (*x509.Certificate, error) {
	for _, name := range []string{ca.FolderChain, ca.FolderKey, ca.FolderIdentityBundle} {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s has no %s: want a folder with cert.pem, key.pem and identity-bundle.pem", folder, name)
			}
			return nil, err
		}
	}
	return readCertificate(filepath.Join(folder, ca.FolderChain))
}

// readCertificate reads the first certificate of a PEM file.
func readCertificate(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cert, nil
}

// spiffeOf returns the certificate's URI, for people to read; "" when it has not exactly one.
func spiffeOf(cert *x509.Certificate) string {
	if len(cert.URIs) != 1 {
		return ""
	}
	return cert.URIs[0].String()
}

// next says on stderr what to type next. It is advice and no data, so a pipe never sees it.
func (a *app) next(format string, args ...any) {
	fmt.Fprintln(a.stderr, "next:", safeLine(fmt.Sprintf(format, args...)))
}
