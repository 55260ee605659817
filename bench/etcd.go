package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// etcd is three members on this machine's disk, as etcd runs without further
// settings: every write synced, and mutual TLS between members and with
// clients.
type etcd struct {
	members []*process
	urls    []string
	conf    *tls.Config
}

func startEtcd(ctx context.Context, binary string, certs *pki) (e *etcd, err error) {
	e = &etcd{}
	defer func() {
		if err != nil {
			e.stop()
		}
	}()
	cert, err := tls.LoadX509KeyPair(certs.path("cert.pem"), certs.path("key.pem"))
	if err != nil {
		return nil, err
	}
	e.conf = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: certs.roots, Certificates: []tls.Certificate{cert}}
	var peers, cluster []string
	for i := range 3 {
		for _, list := range []*[]string{&e.urls, &peers} {
			address, err := freeAddress()
			if err != nil {
				return nil, err
			}
			*list = append(*list, "https://"+address)
		}
		cluster = append(cluster, fmt.Sprintf("e%d=%s", i, peers[i]))
	}
	cpem, kpem, ca := certs.path("cert.pem"), certs.path("key.pem"), certs.path("identity-bundle.pem")
	for i := range 3 {
		p, err := start(ctx, binary, "--name", fmt.Sprintf("e%d", i), "--data-dir", certs.path(fmt.Sprintf("etcd%d", i)),
			"--listen-client-urls", e.urls[i], "--advertise-client-urls", e.urls[i],
			"--cert-file", cpem, "--key-file", kpem, "--trusted-ca-file", ca, "--client-cert-auth",
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--peer-cert-file", cpem, "--peer-key-file", kpem, "--peer-trusted-ca-file", ca, "--peer-client-cert-auth",
			"--initial-cluster", strings.Join(cluster, ","), "--log-level", "error")
		if err != nil {
			return nil, err
		}
		e.members = append(e.members, p)
	}
	for i, p := range e.members {
		if err := p.waitFor(ctx, strings.TrimPrefix(e.urls[i], "https://")); err != nil {
			return nil, err
		}
	}
	return e, e.ready(ctx)
}

// ready waits until every member commits.
func (e *etcd) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	w := e.writers(1, 1)
	defer w.close()
	for done := 0; done < len(e.urls); {
		err := w.write(ctx, 0)
		if err == nil {
			done++
			continue
		}
		if ctx.Err() != nil {
			return fmt.Errorf("etcd is not ready: %w; it said: %s", err, e.members[0].stderr.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

func (e *etcd) stop() {
	for _, p := range e.members {
		p.stop()
	}
}

// cpu is what all members have used.
func (e *etcd) cpu() (total time.Duration, err error) {
	for _, p := range e.members {
		used, err := p.cpu()
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// puts writes keys of etcd, by the gRPC call that its clients make.
type puts struct {
	*spread
	payload int
	done    []uint64 // by lane
}

// writers makes lanes that each put their own keys, of payload bytes in all.
func (e *etcd) writers(lanes, payload int) *puts {
	return &puts{spread: newSpread(e.urls, lanes, e.conf), payload: payload, done: make([]uint64, lanes)}
}

func (p *puts) write(ctx context.Context, lane int) error {
	p.done[lane]++
	key := fmt.Appendf(nil, "bench/%03d/%012d", lane, p.done[lane])
	value := make([]byte, max(p.payload-len(key), 0))
	message := appendField(appendField(nil, 1, key), 2, value)
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	answer, _, err := p.post(ctx, lane, "/etcdserverpb.KV/Put", http.Header{
		"Content-Type": {"application/grpc"}, "Te": {"trailers"},
	}, frame)
	if err != nil {
		return err
	}
	if status := answer.Get("Grpc-Status"); status != "0" {
		return fmt.Errorf("etcd: put: status %s: %s", status, answer.Get("Grpc-Message"))
	}
	return nil
}

func (*puts) finish(context.Context) error { return nil }

// appendField writes a field of bytes of a protobuf message.
func appendField(to []byte, number byte, value []byte) []byte {
	return append(binary.AppendUvarint(append(to, number<<3|2), uint64(len(value))), value...)
}
