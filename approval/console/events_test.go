package console_test

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// listener reads a console's event stream.
type listener struct {
	t     *testing.T
	resp  *http.Response
	lines *bufio.Scanner
}

func (b *bed) listen(t *testing.T, ctx context.Context, url, cookie, last string) *listener {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events?after=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = testHost
	r.Header.Set("Cookie", "__Host-hallpass="+cookie)
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return &listener{t, resp, bufio.NewScanner(resp.Body)}
}

// event is the next event, as its lines; "" at the end of the stream.
func (l *listener) event() string {
	var lines []string
	for l.lines.Scan() {
		switch line := l.lines.Text(); {
		case line == "" && len(lines) > 0:
			return strings.Join(lines, "\n")
		case line != "" && !strings.HasPrefix(line, ":"):
			lines = append(lines, line)
		}
	}
	return ""
}

// TestEventsOfWhatNobodyDecides: a glass that was broken is approved with the very command that asks,
// and must not be the one request that an open page hears nothing of. An extension that the rules
// grant is news of the grant.
func TestEventsOfWhatNobodyDecides(t *testing.T) {
	b := newBed(t)
	b.requests = []api.Request{
		pending(func(r *api.Request) { r.ID, r.State = "auto", api.RequestApproved }),
		pending(func(r *api.Request) {
			r.ID, r.State, r.Extends = "longer", api.RequestApproved, &api.Extends{Grant: "the-grant"}
		}),
		pending(func(r *api.Request) { r.ID, r.State, r.BreakGlass = "glass", api.RequestApproved, &api.BreakGlass{} }),
	}
	who := b.signIn(t)
	server := httptest.NewServer(b.pages)
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	l := b.listen(t, ctx, server.URL, who.cookie, "")
	for i, id := range []string{"auto", "longer", "glass"} {
		b.events <- api.Event{ID: uint64(i + 1), Kind: "request.create", Object: id}
	}
	if got := l.event(); !strings.Contains(got, "event: change\n") || !strings.Contains(got, `"id":"the-grant"`) {
		t.Errorf("an extension: %q", got)
	}
	if got := l.event(); !strings.Contains(got, "event: request\n") || !strings.Contains(got, `"id":"glass"`) {
		t.Errorf("a broken glass: %q", got)
	}
}

func TestEvents(t *testing.T) {
	b := newBed(t)
	r := pending(nil)
	b.requests = []api.Request{r}
	who := b.signIn(t)
	server := httptest.NewServer(b.pages)
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	ctx, leave := context.WithCancel(t.Context())
	l := b.listen(t, ctx, server.URL, who.cookie, "")
	if got := l.resp.Header.Get("Content-Type"); l.resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("%d %s", l.resp.StatusCode, got)
	}
	b.events <- api.Event{ID: 5, Kind: "request.create", Object: "not mine to see"}
	b.events <- api.Event{ID: 6, Kind: "request.create", Object: r.ID}
	b.events <- api.Event{ID: 7, Kind: "request.decide", Object: "x\nevent: request\n"}
	if got, want := l.event(), "id: 6\nevent: request\ndata: {\"id\":\""+r.ID+"\",\"kind\":\"request.create\"}"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := l.event(), `id: 7`+"\nevent: change\n"+`data: {"id":"x\nevent: request\n","kind":"request.decide"}`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	leave()
	for b.watchers.Load() != 0 { // the server notices in its own time, and this one would take what is for the next
		runtime.Gosched()
	}

	// The browser comes back with the id that it heard last.
	l = b.listen(t, t.Context(), server.URL, who.cookie, "7")
	b.events <- api.Event{ID: 7, Kind: "request.decide", Object: r.ID}
	b.events <- api.Event{ID: 8, Kind: "grant.revoke", Object: r.ID}
	if got := l.event(); !strings.HasPrefix(got, "id: 8\n") {
		t.Errorf("after 7 comes %q", got)
	}
	b.local.Close() // and with the session the stream ends
	if got := l.event(); got != "" {
		t.Errorf("after the session's end: %q", got)
	}
}

func TestEventsRefused(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	for _, path := range []string{"/events", "/events?after=", "/events?after=-1", "/events?after=x", "/events?after=18446744073709551615"} {
		wants(t, who.get(path), http.StatusBadRequest)
	}
	who.edit = func(r *http.Request) { r.Header.Set("Last-Event-ID", "x") }
	wants(t, who.get("/events?after=1"), http.StatusBadRequest)
}

// A stream that the cluster ends is ended, and its place is free again.
func TestManyStreams(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	server := httptest.NewServer(b.pages)
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	var leave []context.CancelFunc
	for range 32 {
		ctx, cancel := context.WithCancel(t.Context())
		leave = append(leave, cancel)
		if l := b.listen(t, ctx, server.URL, who.cookie, ""); l.resp.StatusCode != http.StatusOK {
			t.Fatal(l.resp.Status)
		}
	}
	if l := b.listen(t, t.Context(), server.URL, who.cookie, ""); l.resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one too many: %s", l.resp.Status)
	}
	leave[0]()
	for deadline := time.Now().Add(time.Minute); ; {
		l := b.listen(t, t.Context(), server.URL, who.cookie, "")
		if l.resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of one that left stays taken")
		}
	}
	for _, cancel := range leave {
		cancel()
	}
	b.local.Close()
}
