package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync/atomic"
	"time"
)

// spread sends each lane's calls to the nodes of a cluster in turn, over HTTP/2
// connections that lanes share: the same client for all clusters, so that its
// cost is the same too.
type spread struct {
	nodes   []string // https://host:port
	clients []*http.Client
	turns   []atomic.Uint32 // by lane
}

// lanesPerConnection is how many lanes share one connection to a node.
const lanesPerConnection = 16

func newSpread(nodes []string, lanes int, confs ...*tls.Config) *spread {
	s := &spread{nodes: nodes, turns: make([]atomic.Uint32, lanes)}
	for i := range (lanes + lanesPerConnection - 1) / lanesPerConnection {
		s.clients = append(s.clients, &http.Client{
			Transport: &http.Transport{TLSClientConfig: confs[i%len(confs)].Clone(), ForceAttemptHTTP2: true},
			Timeout:   10 * time.Second,
		})
	}
	for i := range s.turns {
		s.turns[i].Store(uint32(i)) // they do not all begin with one node
	}
	return s
}

func (s *spread) close() {
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
}

// post sends one call and returns its answer: the headers, with those behind the
// body among them, and the body.
func (s *spread) post(ctx context.Context, lane int, path string, header http.Header, body []byte) (http.Header, []byte, error) {
	node := s.nodes[s.turns[lane].Add(1)%uint32(len(s.nodes))]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, node+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	req.Header = header
	resp, err := s.clients[lane%len(s.clients)].Do(req)
	if err != nil {
		return nil, nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, nil, err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return nil, nil, fmt.Errorf("POST %s%s: %s: %s", node, path, resp.Status, bytes.TrimSpace(answer))
	}
	maps.Copy(resp.Header, resp.Trailer)
	return resp.Header, answer, nil
}

// patience is how long calls may fail one after the other: longer than a
// cluster takes to find a new leader.
const patience = 10 * time.Second

// repeat has lanes call one after the other for d. A call that fails is not
// counted; the time that it takes is.
func repeat(ctx context.Context, lanes int, d time.Duration, call func(ctx context.Context, lane int) error) (work, error) {
	var failed atomic.Int64
	var first atomic.Pointer[error]
	done, err := drive(ctx, lanes, func(ctx context.Context, count *atomic.Int64, lane int) error {
		good := time.Now()
		for end := time.Now().Add(d); time.Now().Before(end); {
			err := call(ctx, lane)
			if err != nil {
				failed.Add(1)
				first.CompareAndSwap(nil, &err)
			}
			switch {
			case err == nil:
				good = time.Now()
				count.Add(1)
			case time.Since(good) > patience || ctx.Err() != nil:
				return err
			default:
				time.Sleep(10 * time.Millisecond)
			}
		}
		return nil
	})
	if all, ok := err.(interface{ Unwrap() []error }); ok { // of what errors.Join returns, one will do
		err = all.Unwrap()[0]
	}
	if done.failed = failed.Load(); done.failed > 0 {
		done.failure = *first.Load()
	}
	return done, err
}
