package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
)

const (
	// streamIdle is how long a stream may stay silent before it is taken for
	// dead: three heartbeats.
	streamIdle = 15 * time.Second
	// maxEvent bounds one event: the feed in full.
	maxEvent = 16 << 20
)

// injectTrace sends ctx's trace along.
func injectTrace(ctx context.Context, h http.Header) {
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(h))
}

// FromNow makes WatchEvents start with what happens next.
const FromNow = math.MaxUint64

// WatchEvents calls fn for each event after the one with id after, in order and
// each once, over reconnects and failovers, until ctx ends, fn returns an error
// or the server refuses. It always returns an error.
func (c *Client) WatchEvents(ctx context.Context, after uint64, fn func(Event) error) error {
	last := after
	position := func() string {
		if last == FromNow {
			return ""
		}
		return strconv.FormatUint(last, 10)
	}
	return c.watch(ctx, pathEvents, position, func(e sseEvent) error {
		if e.name == "position" {
			if last == FromNow {
				last, _ = strconv.ParseUint(e.id, 10, 64) // absent means 0
			}
			return nil
		}
		var ev Event
		if err := json.Unmarshal(e.data, &ev); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if err := fn(ev); err != nil {
			return &callbackError{err}
		}
		last = ev.ID
		return nil
	})
}

// FeedEvent is either the full list or a heartbeat.
type FeedEvent struct {
	Feed      *Feed
	Heartbeat *Heartbeat
}

// WatchRevocations calls fn with the full feed on each connect and after each
// change, and with heartbeats between. It ends as WatchEvents does.
func (c *Client) WatchRevocations(ctx context.Context, fn func(FeedEvent) error) error {
	return c.watch(ctx, pathRevocations, func() string { return "" }, func(e sseEvent) error {
		var fe FeedEvent
		var err error
		switch e.name {
		case "feed":
			fe.Feed = new(Feed)
			err = json.Unmarshal(e.data, fe.Feed)
		case "heartbeat":
			fe.Heartbeat = new(Heartbeat)
			err = json.Unmarshal(e.data, fe.Heartbeat)
		default:
			return nil
		}
		if err != nil {
			return fmt.Errorf("event %s: %w", e.name, err)
		}
		if err := fn(fe); err != nil {
			return &callbackError{err}
		}
		return nil
	})
}

// callbackError is an error of the caller's own function.
type callbackError struct{ err error }

func (e *callbackError) Error() string { return e.err.Error() }

func (c *Client) watch(ctx context.Context, path string, lastID func() string, fn func(sseEvent) error) error {
	at := c.current.Load()
	backoff := minBackoff
	turned := 0 // servers in a row that could not prove to be control nodes, or refused this identity
	for {
		server := c.servers[at%uint32(len(c.servers))]
		heard := false
		err := c.stream(ctx, server, path, lastID, func(e sseEvent) error {
			heard = true
			return fn(e)
		})
		var cb *callbackError
		var p *Problem
		switch {
		case errors.As(err, &cb):
			return cb.err
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &p) && !retryable(err):
			return err
		case !unverified(err) && !errors.Is(err, ErrUnauthenticated):
			turned = 0
		case turned+1 >= len(c.servers):
			return err
		default:
			turned++
		}
		c.log.LogAttrs(ctx, slog.LevelDebug, "stream ended, reconnecting",
			slog.String("server", server), slog.Any("error", err))
		if heard {
			backoff = minBackoff
		}
		if err := sleep(ctx, backoff/2+rand.N(backoff)); err != nil { //nolint:gosec // jitter
			return err
		}
		backoff = min(2*backoff, maxBackoff)
		at++
	}
}

// stream reads one connection's events until it ends.
func (c *Client) stream(ctx context.Context, server, path string, lastID func() string, fn func(sseEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(streamIdle, cancel)
	defer idle.Stop()

	cl := newCall(http.MethodGet, path, nil)
	set(cl.query, "after", lastID())
	resp, err := c.send(ctx, server, cl, eventStream)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return readProblem(resp, body)
	}
	return readSSE(resp.Body, func() { idle.Reset(streamIdle) }, fn)
}

type sseEvent struct {
	name, id string
	data     []byte
}

// readSSE parses a text/event-stream. alive is called for each line, comments
// included.
func readSSE(r io.Reader, alive func(), fn func(sseEvent) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxEvent)
	var e sseEvent
	for sc.Scan() {
		alive()
		line := sc.Text()
		if line == "" {
			if e.data != nil {
				if err := fn(e); err != nil {
					return err
				}
			}
			e = sseEvent{}
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			if e.data != nil {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
			if e.data == nil {
				e.data = []byte{}
			}
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
