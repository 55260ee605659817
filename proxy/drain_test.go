package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// next reads frames until one that match takes, answering nothing.
func (s *h2session) next(what string, match func(http2.Frame) bool) {
	s.t.Helper()
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			s.t.Fatalf("no %s: %v", what, err)
		}
		if match(f) {
			return
		}
	}
}

// wantNoGoAway demands that none has come by now.
func (s *h2session) wantNoGoAway() {
	s.t.Helper()
	s.must(s.fr.WritePing(false, [8]byte{1}))
	s.next("answer to a ping", func(f http2.Frame) bool {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			s.t.Fatalf("%v before its time", g)
		}
		p, ok := f.(*http2.PingFrame)
		return ok && p.IsAck()
	})
}

// wantGoAway demands a GOAWAY without an error that lets streams up to last go on.
func (s *h2session) wantGoAway(last uint32) {
	s.t.Helper()
	s.next("GOAWAY", func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		if ok && (g.ErrCode != http2.ErrCodeNo || g.LastStreamID != last) {
			s.t.Errorf("%v, want no error and %d as the last stream", g, last)
		}
		return ok
	})
}

// drained is a service whose connections are drained long before they are cut.
func drained(s *Settings) { s.Drain.BeforeExpiry = 30 * time.Minute }

// TestGoAwayBeforeExpiry: an HTTP/2 connection hears that its end is near, whether
// or not it asks for anything.
func TestGoAwayBeforeExpiry(t *testing.T) {
	t.Run("never used", func(t *testing.T) {
		e := start(t, options{edit: drained})
		s := e.h2session(e.pki.grant(time.Hour, "GET /**"))
		s.wantNoGoAway()
		e.clock.moveOn(50 * time.Minute) // the last quarter
		s.wantGoAway(0)
		if _, err := io.Copy(io.Discard, s.conn); err != nil {
			t.Errorf("it did not end well: %v", err)
		}
		if r := e.record("its end", func(r logLine) bool { return r.Kind == kindConnection }); r.Reason != "" || r.Requests != 0 {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("idle", func(t *testing.T) {
		e := start(t, options{edit: drained, upstream: upstreamServer(t, echoHandler)})
		s := e.h2session(e.pki.grant(time.Hour, "GET /**"))
		s.send(1, h2fields("GET", "/a"), true)
		s.next("end of the answer", func(f http2.Frame) bool {
			d, ok := f.(*http2.DataFrame)
			return ok && d.StreamEnded()
		})
		s.wantNoGoAway()
		e.clock.moveOn(50 * time.Minute)
		s.wantGoAway(1)
		if _, err := io.Copy(io.Discard, s.conn); err != nil {
			t.Errorf("it did not end well: %v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		var late atomic.Bool
		e := start(t, options{edit: drained, upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI == "/late" {
				late.Store(true)
			}
			drip(w, r)
		})})
		s := e.h2session(e.pki.grant(time.Hour, "GET /**"))
		data := func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }
		s.send(1, h2fields("GET", "/drip"), true)
		s.next("data", data)
		s.wantNoGoAway()
		e.clock.moveOn(50 * time.Minute)
		s.wantGoAway(1)
		s.send(3, h2fields("GET", "/late"), true)
		for range 20 { // the stream goes on, and the late one is as if never sent
			s.next("data", func(f http2.Frame) bool {
				if f.Header().StreamID == 3 {
					t.Fatalf("an answer to what was sent after GOAWAY: %v", f)
				}
				return data(f)
			})
		}
		e.clock.moveOn(20 * time.Minute)
		moved := time.Now()
		for err := error(nil); err == nil; {
			_, err = s.fr.ReadFrame()
			if errors.Is(err, io.EOF) {
				t.Error("a cut stream ended as if it were whole")
			}
		}
		if took := time.Since(moved); took > patience {
			t.Errorf("cut after %s", took)
		}
		e.record("the cut stream", func(r logLine) bool {
			return r.Kind == kindRequest && r.Path == "/drip" && r.Reason == reasonExpired
		})
		if late.Load() {
			t.Error("the upstream was asked for what came after GOAWAY")
		}
	})
}

// TestGoAwayAtOnce: whoever comes in while the proxy drains hears it, though it
// was told to drain before net/http knew of the connection.
func TestGoAwayAtOnce(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	e.px.live.drainAll()
	for range 20 {
		e.h2session(e.pki.grant(time.Hour, "GET /**")).wantGoAway(0)
	}
}

// TestGoAwayOnShutdown: and whoever is there when it begins to.
func TestGoAwayOnShutdown(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, drip), edit: func(s *Settings) { s.Drain.Shutdown = 2 * time.Second }})
	idle, busy := e.h2session(e.pki.grant(time.Hour, "GET /**")), e.h2session(e.pki.grant(time.Hour, "GET /**"))
	idle.wantNoGoAway()
	busy.send(1, h2fields("GET", "/drip"), true)
	busy.next("data", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
	e.stop()
	idle.wantGoAway(0)
	busy.wantGoAway(1)
	busy.next("data after GOAWAY", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
	if _, err := io.Copy(io.Discard, busy.conn); err == nil {
		t.Error("the cut stream ended as if it were whole")
	}
}

// TestConnectionCloseBeforeExpiry: HTTP/1 hears it with the next answer, a
// refusal included, and that answer is the last.
func TestConnectionCloseBeforeExpiry(t *testing.T) {
	for path, status := range map[string]int{"/a": http.StatusOK, "/refused": http.StatusForbidden} {
		e := start(t, options{edit: drained, upstream: upstreamServer(t, echoHandler)})
		c := e.dial(e.pki.grant(time.Hour, "GET /a"), "http/1.1")
		r := bufio.NewReader(c)
		last := func() bool {
			t.Helper()
			if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			if err = errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != status {
				t.Fatalf("%s: %s, %v", path, res.Status, err)
			}
			return res.Close
		}
		if last() {
			t.Errorf("%s: Connection: close before its time", path)
		}
		e.clock.moveOn(50 * time.Minute)
		e.eventually("drain", func() bool {
			e.px.live.mu.Lock()
			defer e.px.live.mu.Unlock()
			return e.px.live.due[0].draining.Load()
		})
		if !last() {
			t.Errorf("%s: no Connection: close", path)
		}
		if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the last answer: %v", path, err)
		}
	}
}
