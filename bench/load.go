package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// work is what a load did in its time.
type work struct {
	requests  int64
	failed    int64           // calls that repeat made anew
	failure   error           // the first of them
	latencies []time.Duration // of each request, when they were asked for
}

// wire is one connection of the load generator, spoken to by hand: a client
// library's own cost would hide the server's on a machine of two cores.
type wire struct {
	conn   *tls.Conn
	reader *bufio.Reader
}

const benchRequest = "GET /accounts/42 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"

func dial(ctx context.Context, address string, conf *tls.Config) (*wire, error) {
	dialer := tls.Dialer{Config: conf}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := conn.(*tls.Conn) //nolint:forcetypeassert // tls.Dialer documents it
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return &wire{conn: c, reader: bufio.NewReader(c)}, nil
}

// get sends one request and reads all of its answer.
func (w *wire) get() error {
	if _, err := io.WriteString(w.conn, benchRequest); err != nil {
		return err
	}
	resp, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	return resp.Body.Close()
}

// saturate keeps n connections busy for d, each sending its next request as
// soon as the last is answered.
func saturate(ctx context.Context, address string, conf *tls.Config, n int, d time.Duration) (work, error) {
	return drive(ctx, n, func(ctx context.Context, count *atomic.Int64, _ int) error {
		w, err := dial(ctx, address, conf)
		if err != nil {
			return err
		}
		defer func() { _ = w.conn.Close() }()
		for end := time.Now().Add(d); time.Now().Before(end); count.Add(1) {
			if err := w.get(); err != nil {
				return err
			}
		}
		return nil
	})
}

// connect opens connections for d on n lanes, one request on each.
func connect(ctx context.Context, address string, conf *tls.Config, n int, d time.Duration) (work, error) {
	return drive(ctx, n, func(ctx context.Context, count *atomic.Int64, _ int) error {
		for end := time.Now().Add(d); time.Now().Before(end); count.Add(1) {
			w, err := dial(ctx, address, conf)
			if err != nil {
				return err
			}
			if err := w.get(); err != nil {
				return errors.Join(err, w.conn.Close())
			}
			if err := w.conn.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

// pace sends rate requests a second over n connections for d. A request that
// could not be sent in its turn is timed from when it should have been.
func pace(ctx context.Context, address string, conf *tls.Config, n int, rate float64, d time.Duration) (work, error) {
	var mu sync.Mutex
	var latencies []time.Duration
	step := time.Duration(float64(n) * float64(time.Second) / rate)
	total, err := drive(ctx, n, func(ctx context.Context, count *atomic.Int64, lane int) error {
		w, err := dial(ctx, address, conf)
		if err != nil {
			return err
		}
		defer func() { _ = w.conn.Close() }()
		mine := make([]time.Duration, 0, int(d/step)+1)
		begin := time.Now().Add(step * time.Duration(lane) / time.Duration(n))
		for due := begin; due.Before(begin.Add(d)); due = due.Add(step) {
			time.Sleep(time.Until(due))
			if err := w.get(); err != nil {
				return err
			}
			mine = append(mine, time.Since(due))
			count.Add(1)
		}
		mu.Lock()
		defer mu.Unlock()
		latencies = append(latencies, mine...)
		return nil
	})
	total.latencies = latencies
	return total, err
}

func drive(ctx context.Context, n int, lane func(ctx context.Context, count *atomic.Int64, lane int) error) (work, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var count atomic.Int64
	errs := make([]error, n)
	var lanes sync.WaitGroup
	for i := range n {
		lanes.Go(func() { errs[i] = lane(ctx, &count, i) })
	}
	lanes.Wait()
	return work{requests: count.Load()}, errors.Join(errs...)
}
