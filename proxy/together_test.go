package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// sink is a net.Conn that keeps what each write brings.
type sink struct {
	net.Conn
	writes []string
	err    error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.writes = append(s.writes, string(p))
	return len(p), nil
}

func (s *sink) got() string { return strings.Join(s.writes, "|") }

func TestTogether(t *testing.T) {
	big := strings.Repeat("x", mostTogether+1)
	for name, tc := range map[string]struct {
		do   func(w *together)
		want string
	}{
		"nothing is awaited":           {func(w *together) { writeAll(t, w, "head", "body") }, "head|body"},
		"the head waits for its body":  {func(w *together) { w.awaitMore(); writeAll(t, w, "head", "body", "next") }, "headbody|next"},
		"two streams' heads":           {func(w *together) { w.awaitMore(); w.awaitMore(); writeAll(t, w, "two heads", "two bodies") }, "two headstwo bodies"},
		"what is too much does not":    {func(w *together) { w.awaitMore(); writeAll(t, w, big, "body") }, big + "|body"},
		"its body may be any":          {func(w *together) { w.awaitMore(); writeAll(t, w, "head", big, "end") }, "head" + big + "|end"},
		"a head behind one that waits": {func(w *together) { w.awaitMore(); writeAll(t, w, "a"); w.awaitMore(); writeAll(t, w, "b", "c") }, "abc"},
		"another stream's body may go": {func(w *together) { w.awaitMore(); writeAll(t, w, "other", "head", "body") }, "otherhead|body"},
		"and nothing stays when the rest does not come": {func(w *together) {
			w.awaitMore()
			writeAll(t, w, "head") // and the client resets the stream
			time.Sleep(togetherFor)
		}, "head"},
		"also the second time": {func(w *together) {
			for range 2 {
				w.awaitMore()
				writeAll(t, w, "head")
				time.Sleep(togetherFor)
				synctest.Wait()
			}
		}, "head|head"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sink{}
				tc.do(&together{to: s})
				synctest.Wait()
				if s.got() != tc.want {
					t.Errorf("written: %.60q, want %.60q", s.got(), tc.want)
				}
			})
		})
	}
}

func writeAll(t *testing.T, w *together, what ...string) {
	t.Helper()
	for _, p := range what {
		if n, err := w.write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
}

// What went out in part, or was to go out later and did not, must not be followed by
// anything: the client would read it as something else.
func TestTogetherFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{err: io.ErrClosedPipe}
		w := &together{to: s}
		w.awaitMore()
		writeAll(t, w, "head")
		time.Sleep(2 * togetherFor)
		synctest.Wait()
		s.err = nil
		if _, err := w.write([]byte("body")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write behind a failed one: %v", err)
		}
		if s.got() != "" {
			t.Errorf("written: %q", s.got())
		}
	})
}

// counted counts what its connections' writes are.
type counted struct {
	net.Listener
	writes atomic.Int64
}

type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{c, &l.writes}, nil
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestHeadsLeaveWithTheirBody has small answers to HTTP/2 leave as one write each, and those
// of gRPC as two: the trailers come when the message has gone.
func TestHeadsLeaveWithTheirBody(t *testing.T) {
	trailers := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = io.WriteString(w, "\x00\x00\x00\x00\x02ok")
		_ = http.NewResponseController(w).Flush() // as gRPC has it: of no length
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}
	for name, tc := range map[string]struct {
		upstream string
		fields   [][2]string
		writes   int64
	}{
		"a body of a known length": {upstreamServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), h2fields("GET", "/a"), 1},
		"gRPC: a message and its status": {
			h2cServer(t, trailers),
			h2fields("POST", "/pkg.Service/Method", [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"}),
			2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &counted{}
			e := start(t, options{upstream: tc.upstream, listen: func(ln net.Listener) net.Listener { l.Listener = ln; return l }})
			s := e.h2session(e.pki.grant(time.Hour, "GET /a", "grpc pkg.Service/Method"))
			defer func() { _ = s.conn.Close() }()
			one := 0
			const asked = 50
			for i := range uint32(asked) {
				before := l.writes.Load()
				s.send(2*i+1, tc.fields, true)
				for ended := false; !ended; {
					f, err := s.fr.ReadFrame()
					s.must(err)
					switch f := f.(type) {
					case *http2.MetaHeadersFrame:
						ended = f.StreamEnded()
					case *http2.DataFrame:
						ended = f.StreamEnded()
					case *http2.RSTStreamFrame, *http2.GoAwayFrame:
						t.Fatalf("answer: %v", f)
					}
				}
				if l.writes.Load() <= before+tc.writes {
					one++
				}
			}
			// On a busy machine a head waits too long now and then.
			if one < asked/2 {
				t.Errorf("%d of %d answers were %d writes at the most", one, asked, tc.writes)
			}
		})
	}
}
