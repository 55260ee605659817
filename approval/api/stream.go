package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

const (
	eventStream     = "text/event-stream"
	pathEvents      = "/v1/events"
	pathRevocations = "/v1/revocations"

	// writeTimeout is how long a reader may leave a stream unread.
	writeTimeout = 10 * time.Second
)

// sse writes one stream.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// openStream starts a stream. Its context MUST end with the caller's
// certificate.
func openStream(w http.ResponseWriter) *sse {
	w.Header().Set("Content-Type", eventStream)
	w.WriteHeader(http.StatusOK)
	return &sse{w: w, rc: http.NewResponseController(w)}
}

func (s *sse) flush() error {
	if err := s.rc.Flush(); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}

// event writes one event; an id of 0 is left out.
func (s *sse) event(name string, id uint64, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("event %s: %w", name, err)
	}
	// A reader that stops reading would otherwise keep its goroutine, and what
	// is queued for it, for as long as its certificate lives.
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // without one, the server's own timeouts stand
	if id != 0 {
		if _, err := io.WriteString(s.w, "id: "+strconv.FormatUint(id, 10)+"\n"); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", name, data); err != nil {
		return err
	}
	return s.flush()
}

// comment keeps a silent stream alive.
func (s *sse) comment(text string) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := fmt.Fprintf(s.w, ": %s\n\n", text); err != nil {
		return err
	}
	return s.flush()
}

func (h *Handler) serveRevocations(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	call := callFrom(ctx, true)
	feed, err := h.backend.Revocations(ctx, call, FeedPosition{}, 0)
	if err != nil {
		h.Problem(w, r, err)
		return
	}
	if !accepts(r, eventStream) {
		h.writeJSON(w, feed)
		return
	}
	ctx, cancel := context.WithDeadline(ctx, call.Caller.NotAfter)
	defer cancel()
	h.ended(ctx, "revocations", h.streamFeed(ctx, openStream(w), call, feed))
}

// streamFeed sends the list, then the list again on each change and a heartbeat
// otherwise. A heartbeat names the revision it vouches for, so that a reader
// that missed a list does not take an old one for confirmed.
func (h *Handler) streamFeed(ctx context.Context, s *sse, call Call, feed Feed) error {
	sent := FeedPosition{}
	for first := true; ; first = false {
		at := FeedPosition{Epoch: feed.Epoch, Revision: feed.Revision}
		var err error
		if first || at != sent {
			err = s.event("feed", 0, feed)
		} else {
			err = s.event("heartbeat", 0, Heartbeat{Epoch: feed.Epoch, Revision: feed.Revision, VerifiedAt: feed.VerifiedAt, Roots: feed.Roots})
		}
		if err != nil {
			return err
		}
		sent = at
		if feed, err = h.backend.Revocations(ctx, call, sent, h.heartbeat); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	if !accepts(r, eventStream) {
		h.Problem(w, r, NewProblem(CodeNotAcceptable, "this route only streams", "send Accept: "+eventStream))
		return
	}
	call := callFrom(ctx, true)
	after, err := h.position(ctx, call, r)
	if err != nil {
		h.Problem(w, r, err)
		return
	}
	ctx, cancel := context.WithDeadline(ctx, call.Caller.NotAfter)
	defer cancel()
	h.ended(ctx, "events", h.streamEvents(ctx, openStream(w), call, after))
}

// position is the id of the event that the caller saw last.
func (h *Handler) position(ctx context.Context, call Call, r *http.Request) (uint64, error) {
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		text = r.URL.Query().Get("after")
	}
	if text == "" {
		return h.backend.LastEvent(ctx, call)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, NewProblem(CodeInvalid, "Last-Event-ID: want the id of an event", "leave it out to get only what is new")
	}
	return n, nil
}

func (h *Handler) streamEvents(ctx context.Context, s *sse, call Call, after uint64) error {
	// The position goes out first, so that a reader that loses the connection
	// before the first event misses none.
	if err := s.event("position", after, struct{}{}); err != nil {
		return err
	}
	for {
		events, last, err := h.backend.Events(ctx, call, after, h.heartbeat)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, e := range events {
			if err := s.event("change", e.ID, e); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			if err := s.comment("alive"); err != nil {
				return err
			}
		}
		after = last
	}
}

func (h *Handler) ended(ctx context.Context, stream string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	if p := problemOf(err); p.Code == CodeInternal && !errors.Is(err, context.Canceled) {
		h.log.LogAttrs(ctx, slog.LevelDebug, "stream ended", slog.String("stream", stream),
			slog.String("request_id", RequestIDFrom(ctx)), slog.String("error", err.Error()))
	}
}

func (h *Handler) writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the client's loss
}
