package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// These words as the first argument make this program one of the servers, so that
// its time is counted as what it is.
const (
	upstreamWord     = "upstream"
	tcpUpstreamWord  = "tcp-upstream"
	reverseProxyWord = "reverseproxy"
)

// words runs the program as a server, if it is asked to.
func words(args []string) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	var err error
	switch {
	case args[0] == upstreamWord && len(args) == 2:
		err = serveHTTP(args[1])
	case args[0] == tcpUpstreamWord && len(args) == 2:
		err = serveTCP(args[1])
	case args[0] == reverseProxyWord && len(args) == 6:
		err = serveReverseProxy(args[1], args[2], args[3], args[4], args[5])
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", args[0]+":", err)
		return 1, true
	}
	return 0, true
}

func startUpstream(ctx context.Context, word string) (side, error) {
	address, err := freeAddress()
	if err != nil {
		return side{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return side{}, err
	}
	p, err := start(ctx, self, word, address)
	if err != nil {
		return side{}, err
	}
	if err := p.waitFor(ctx, address); err != nil {
		p.stop()
		return side{}, err
	}
	return side{name: word, process: p, address: address}, nil
}

// serveHTTP answers everything with a KB, and gRPC calls with a message of 64
// bytes. It speaks HTTP/1.1, and HTTP/2 without TLS.
func serveHTTP(address string) error {
	body := []byte(strings.Repeat("x", 1024))
	message := append([]byte{0, 0, 0, 0, 64}, strings.Repeat("y", 64)...)
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Content-Type") != "application/grpc" {
				_, _ = w.Write(body) // the client may be gone
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = w.Write(message)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveTCP reads how many bytes are to come and how many to send, does both one
// after the other, and ends its side.
func serveTCP(address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }() // the client may be gone
			var want [16]byte
			if _, err := io.ReadFull(c, want[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint64(want[:8]))); err != nil {
				return
			}
			buf := make([]byte, 64<<10)
			for left := int64(binary.BigEndian.Uint64(want[8:])); left > 0; {
				n, err := c.Write(buf[:min(left, int64(len(buf)))])
				if err != nil {
					return
				}
				left -= int64(n)
			}
		}()
	}
}

// serveReverseProxy is httputil.ReverseProxy as one would write it: client
// certificates required, an access log, as many idle connections kept as there are
// clients.
func serveReverseProxy(kind, address, backend, certs, logFile string) error {
	bundle, err := os.ReadFile(filepath.Join(certs, "grants-bundle.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	file, err := os.Create(logFile)
	if err != nil {
		return err
	}
	access := log.New(file, "", log.LstdFlags)
	transport := &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true, Protocols: new(http.Protocols)}
	if kind == kindGRPC {
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	target := &url.URL{Scheme: "http", Host: backend}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
			r.Out.Header.Set("X-Forwarded-Client-Cert", r.In.TLS.PeerCertificates[0].URIs[0].String())
		},
	}
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, SessionTicketsDisabled: true},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/accounts/") && r.URL.Path != benchMethod {
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			proxy.ServeHTTP(w, r)
			access.Printf("%s %s %s %s", r.RemoteAddr, r.TLS.PeerCertificates[0].SerialNumber, r.Method, r.URL.Path)
		}),
	}
	err = server.ListenAndServeTLS(filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"))
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
