package proxy

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// upstream is the service behind the proxy.
type upstream struct {
	target
	dialer    net.Dialer
	transport *http.Transport // where the upstream speaks h2c, and of HTTP/1 connections that began when it did
	backends  *backends       // of all others
	authority string          // the URL's host; only a key of the connection pool
	buffers   sync.Pool
	desks     sync.Pool
}

const copyBuffer = 32 << 10

func newUpstream(cfg *config) *upstream {
	u := &upstream{target: cfg.upstream, authority: "upstream"}
	u.dialer = net.Dialer{Timeout: cfg.limits.dialTO, KeepAlive: 30 * time.Second}
	u.buffers.New = func() any { b := make([]byte, copyBuffer); return &b }
	if cfg.tcp || cfg.pg != nil {
		return u
	}
	u.backends = &backends{dial: u.dial, most: cfg.limits.conns}
	u.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return u.dial(ctx) },
		// As many idle connections as there may be clients: with net/http's 2 per
		// host every burst dials anew.
		MaxIdleConns:          0,
		MaxIdleConnsPerHost:   cfg.limits.conns,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
		// A transport that asks for gzip by itself answers with other bytes than the upstream sent.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 1 << 20,
	}
	protocols := new(http.Protocols)
	if u.h2c {
		protocols.SetUnencryptedHTTP2(true)
		u.transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second}
	} else {
		protocols.SetHTTP1(true)
	}
	u.transport.Protocols = protocols
	return u
}

func (u *upstream) dial(ctx context.Context) (net.Conn, error) {
	c, err := u.dialer.DialContext(ctx, u.network, u.address)
	if err != nil {
		return nil, err
	}
	return directly(c), nil
}

func (u *upstream) close() {
	if u.transport != nil {
		u.transport.CloseIdleConnections()
		u.backends.close()
	}
}

func (u *upstream) buffer() *[]byte {
	if b, ok := u.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, copyBuffer)
	return &b
}

func (u *upstream) release(b *[]byte) { u.buffers.Put(b) }

// sweep closes connections that have been idle for long.
func (u *upstream) sweep() {
	if u.backends != nil {
		u.backends.sweep(time.Now())
	}
}
