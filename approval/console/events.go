package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const (
	// maxStreams is how many pages of a console may hear of what happens at a time.
	maxStreams = 32
	pathEvents = "/events"

	// streamBeat is how often a silent stream says that it lives, streamWrite how
	// long a reader may leave it unread.
	streamBeat  = 15 * time.Second
	streamWrite = 10 * time.Second
)

// news is what a page is told of an event.
type news struct {
	name string
	id   uint64
	data struct {
		ID   string `json:"id"`
		Kind string `json:"kind"`
	}
}

// events streams what happens after the event that the page, or its last
// connection, knows of. A page that comes back misses nothing and hears nothing
// twice.
func (c *Console) events(w http.ResponseWriter, r *http.Request) {
	s, err := c.sessions.Session(r)
	if err != nil {
		c.refuse(w, r, &refusal{http.StatusUnauthorized, "Your session is over.", "Run hallpass console again."})
		return
	}
	after, err := position(r)
	if err != nil {
		c.refuse(w, r, &refusal{http.StatusBadRequest, "That is no event's id.", ""})
		return
	}
	select {
	case c.streams <- struct{}{}:
		defer func() { <-c.streams }()
	default:
		c.refuse(w, r, &refusal{http.StatusTooManyRequests, "Too many pages listen already.", "Close some."})
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.Live, cancel)() //nolint:contextcheck // the session may end before the call
	err = c.stream(ctx, cancel, w, s.API, after)
	if err != nil && ctx.Err() == nil {
		c.log.LogAttrs(ctx, slog.LevelDebug, "event stream ended", slog.String("error", err.Error()))
	}
}

// position is the event that a page knows of. What a browser adds when it comes
// back is newer than what the page was made with.
func position(r *http.Request) (uint64, error) {
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		text = r.URL.Query().Get("after")
	}
	return strconv.ParseUint(text, 10, 63)
}

// stream writes events until ctx ends, the reader leaves or the cluster refuses.
func (c *Console) stream(ctx context.Context, cancel context.CancelFunc, w http.ResponseWriter, from API, after uint64) error {
	rc := http.NewResponseController(w)
	// The server's time for a request is over long before a stream is.
	if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Now().Add(streamWrite))); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return err
	}
	heard := make(chan news)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	var ended error
	watching.Go(func() {
		defer close(heard)
		ended = from.WatchEvents(ctx, after, func(e api.Event) error { return pass(ctx, from, e, heard) })
	})
	beat := time.NewTicker(streamBeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case n, ok := <-heard:
			if !ok {
				return ended
			}
			err = n.write(w, rc)
		case <-beat.C:
			err = write(w, rc, ": alive\n\n")
		}
		if err != nil {
			return err
		}
	}
}

// pass hands an event on, if it is about what a page may show. A person hears of
// all that is logged; a request that is not theirs to see would be announced, and
// then not be there.
func pass(ctx context.Context, from API, e api.Event, heard chan<- news) error {
	n := news{name: "change", id: e.ID}
	n.data.ID, n.data.Kind = e.Object, e.Kind
	if e.Kind == "request.create" || e.Kind == "request.escalate" {
		r, err := from.Request(ctx, e.Object)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, api.ErrNotFound):
			return nil
		case err == nil && r.Extends != nil && r.State == api.RequestApproved:
			n.data.ID = r.Extends.Grant // whose page says until when it lives
			return send(ctx, n, heard)
		case err == nil && e.Kind == "request.escalate" && r.State != api.RequestPending:
			return send(ctx, n, heard)
		case err == nil && r.State != api.RequestPending && r.BreakGlass == nil:
			return nil // decided already; its events follow
		}
		n.name = "request"
	}
	return send(ctx, n, heard)
}

func send(ctx context.Context, n news, heard chan<- news) error {
	select {
	case heard <- n:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n news) write(w http.ResponseWriter, rc *http.ResponseController) error {
	data, err := json.Marshal(n.data) // has no line end in it, whatever the event says
	if err != nil {
		return err
	}
	return write(w, rc, fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", n.id, n.name, data))
}

func write(w http.ResponseWriter, rc *http.ResponseController, text string) error {
	if err := rc.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	if _, err := w.Write([]byte(text)); err != nil {
		return err
	}
	return rc.Flush()
}
