package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// benchMethod is the gRPC method that the grant allows.
const benchMethod = "/bank.Ledger/Transfer"

// streams keeps n streams busy over a few HTTP/2 connections for d: GETs, or
// unary gRPC calls.
func streams(ctx context.Context, address string, conf *tls.Config, n int, d time.Duration, grpc bool) (work, error) {
	const lanes = 4
	transports := make([]*http.Transport, lanes)
	for i := range transports {
		t := &http.Transport{TLSClientConfig: conf, DisableCompression: true, Protocols: new(http.Protocols)}
		t.Protocols.SetHTTP2(true)
		defer t.CloseIdleConnections()
		transports[i] = t
	}
	call := h2get
	if grpc {
		call = unary
	}
	return drive(ctx, n, func(ctx context.Context, count *atomic.Int64, lane int) error {
		for end := time.Now().Add(d); time.Now().Before(end); count.Add(1) {
			if err := call(ctx, transports[lane%lanes], "https://"+address); err != nil {
				return err
			}
		}
		return nil
	})
}

func h2get(ctx context.Context, t http.RoundTripper, base string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/accounts/42", http.NoBody)
	if err != nil {
		return err
	}
	return roundTrip(t, req, "")
}

func unary(ctx context.Context, t http.RoundTripper, base string) error {
	message := append([]byte{0, 0, 0, 0, 64}, make([]byte, 64)...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+benchMethod, bytes.NewReader(message))
	if err != nil {
		return err
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	return roundTrip(t, req, "0")
}

func roundTrip(t http.RoundTripper, req *http.Request, status string) error {
	req.Host = "localhost"
	res, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || res.Trailer.Get("Grpc-Status") != status {
		return fmt.Errorf("the server answered %s, grpc-status %q", res.Status, res.Trailer.Get("Grpc-Status"))
	}
	return nil
}

// bulk sends size bytes up and has size bytes sent down, on one connection. Its
// requests are bytes.
func bulk(ctx context.Context, address string, conf *tls.Config, size int64) (work, error) {
	return drive(ctx, 1, func(ctx context.Context, count *atomic.Int64, _ int) error {
		w, err := dial(ctx, address, conf)
		if err != nil {
			return err
		}
		defer func() { _ = w.conn.Close() }()
		var want [16]byte
		binary.BigEndian.PutUint64(want[:8], uint64(size))
		binary.BigEndian.PutUint64(want[8:], uint64(size))
		if _, err := w.conn.Write(want[:]); err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		for left := size; left > 0; {
			n, err := w.conn.Write(buf[:min(left, int64(len(buf)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		for left := size; left > 0; {
			n, err := w.conn.Read(buf)
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		count.Add(2 * size)
		return nil
	})
}

// idleConnections is how many the memory of one is measured with: fewer than ours
// admits of one grant.
const idleConnections = 800

// idle opens connections that ask once and then nothing, and returns what each
// adds to the server's resident memory, in KB.
func idle(ctx context.Context, s side, conf *tls.Config) (float64, error) {
	before, err := s.process.rss()
	if err != nil {
		return 0, err
	}
	conns := make([]*wire, 0, idleConnections)
	defer func() {
		for _, w := range conns {
			_ = w.conn.Close() // it has served its purpose
		}
	}()
	for range idleConnections {
		w, err := dial(ctx, s.address, conf)
		if err != nil {
			return 0, err
		}
		conns = append(conns, w)
		if err := w.get(); err != nil {
			return 0, err
		}
	}
	// Longer than garbage waits to be collected where nothing happens.
	select {
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := s.process.rss()
	return (after - before) / idleConnections, err
}

// rss is what the process and its children have resident, in KB.
func (p *process) rss() (float64, error) {
	pids := []string{strconv.Itoa(p.cmd.Process.Pid)}
	children, err := os.ReadFile("/proc/" + pids[0] + "/task/" + pids[0] + "/children")
	if err != nil {
		return 0, err
	}
	total := 0.0
	for _, pid := range append(pids, strings.Fields(string(children))...) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			return 0, err
		}
		_, rest, ok := strings.Cut(string(status), "VmRSS:")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			return 0, fmt.Errorf("/proc/%s/status: not understood", pid)
		}
		kb, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, err
		}
		total += kb
	}
	return total, nil
}

// cryptoFloor is the CPU time of what a server must compute for a TLS 1.3
// handshake with a client certificate, be its chain known to it: a key share and the shared secret
// (X25519), its own signature and the check of the client's (ECDSA, P-256).
func cryptoFloor(rounds int) (seconds float64, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	peer, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256([]byte("what both sides have said so far"))
	theirs, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := threadCPU()
	if err != nil {
		return 0, err
	}
	for range rounds {
		share, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return 0, err
		}
		if _, err := share.ECDH(peer.PublicKey()); err != nil {
			return 0, err
		}
		if _, err := ecdsa.SignASN1(rand.Reader, key, sum[:]); err != nil {
			return 0, err
		}
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], theirs) {
			return 0, errors.New("a good signature is not taken")
		}
	}
	after, err := threadCPU()
	return (after - before).Seconds() / float64(rounds), err
}

func threadCPU() (time.Duration, error) {
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	err := syscall.Getrusage(thread, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
