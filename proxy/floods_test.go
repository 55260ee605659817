package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	floodStreams = 20       // limits.max_streams under attack
	floodHeap    = 48 << 20 // what an attack on one connection may have the heap grow by, for all it sends
)

// target of the attacks: a proxy, and how many requests its upstream has under way.
type underAttack struct {
	*env
	reader  *sdkmetric.ManualReader
	working atomic.Int64
	reached atomic.Int64
}

func newUnderAttack(t *testing.T, edit func(*Settings)) *underAttack {
	u := &underAttack{reader: sdkmetric.NewManualReader()}
	up := upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		u.reached.Add(1)
		u.working.Add(1)
		defer u.working.Add(-1)
		switch r.URL.Path {
		case "/wait":
			<-r.Context().Done()
		case "/endless":
			for _, err := w.Write(make([]byte, 32<<10)); err == nil && r.Context().Err() == nil; {
				_, err = w.Write(make([]byte, 32<<10))
			}
		default:
			n, _ := io.Copy(io.Discard, r.Body)
			w.Header().Set("X-Length", strings.Repeat("x", int(min(n, 100))))
		}
	})
	u.env = start(t, options{upstream: up, config: func(c *Config) {
		c.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(u.reader))
	}, edit: func(s *Settings) {
		s.Limits.MaxStreams = floodStreams
		if edit != nil {
			edit(s)
		}
	}})
	return u
}

// errorsOf sums the HTTP/2 errors that the metric has counted.
func (u *underAttack) errorsOf(t *testing.T, reason string) int64 {
	t.Helper()
	var got metricdata.ResourceMetrics
	if err := u.reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, sm := range got.ScopeMetrics {
		for _, m := range sm.Metrics {
			d, ok := m.Data.(metricdata.Sum[int64])
			if !ok || m.Name != "hallpass.proxy.http2.errors" {
				continue
			}
			for _, p := range d.DataPoints {
				if v, ok := p.Attributes.Value("reason"); ok && strings.Contains(v.AsString(), reason) {
					sum += p.Value
				}
			}
		}
	}
	return sum
}

// strain is what the process holds more than before.
type strain struct {
	goroutines int
	heap       uint64
	stop       chan struct{}
	peak       chan int
}

func measure() *strain {
	s := &strain{goroutines: runtime.NumGoroutine(), heap: liveHeap(), stop: make(chan struct{}), peak: make(chan int, 1)}
	go func() {
		most := 0
		for {
			most = max(most, runtime.NumGoroutine())
			select {
			case <-s.stop:
				s.peak <- most
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return s
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// check says what an attack has cost at most, while it is still going on.
func (s *strain) check(t *testing.T, goroutines int) {
	t.Helper()
	close(s.stop)
	if got := <-s.peak - s.goroutines; got > goroutines {
		t.Errorf("%d goroutines more than before, want at most %d", got, goroutines)
	}
	if now := liveHeap(); now > s.heap+floodHeap {
		t.Errorf("%d MB of heap more than before", (now-s.heap)>>20)
	}
}

// frames renders frames without sending them.
func frames(t *testing.T, write func(*http2.Framer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(http2.NewFramer(&b, nil)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pour sends the same bytes again and again, up to most of them, and returns how
// many went out before the peer ended the connection, and whether it did.
func pour(t *testing.T, c io.Writer, piece []byte, most int) (sent int, ended bool) {
	t.Helper()
	piece = bytes.Repeat(piece, max(1, (16<<10)/len(piece)))
	for sent < most {
		n, err := c.Write(piece)
		sent += n
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Fatal("the proxy takes no more, and does not end the connection")
		case err != nil:
			return sent, true
		}
	}
	return sent, false
}

// others are served while an attack is going on.
func (u *underAttack) others(t *testing.T) {
	t.Helper()
	e := u.with(t)
	if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), true), "GET", "/ok"); a.status != 200 {
		t.Errorf("another client was answered %d", a.status)
	}
}

// goAwayCode reads until the connection ends and returns the code that it was told.
func (s *h2session) goAwayCode() (code http2.ErrCode, told bool) {
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			return code, told
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			code, told = g.ErrCode, true
		}
	}
}

// TestFloodRapidReset opens requests and resets them at once, so that the limit of
// streams never holds (CVE-2023-44487). No more handlers run than the limit, and
// each request that began has its record.
func TestFloodRapidReset(t *testing.T) {
	u := newUnderAttack(t, nil)
	s := u.h2session(u.pki.grant(time.Hour, "GET /**"))
	go func() { _, _ = io.Copy(io.Discard, s.conn) }() // ends with the connection
	was := measure()
	sent := 0
	for ; sent < 1500; sent++ {
		s.block.Reset()
		for _, f := range h2fields("GET", "/wait") {
			s.must(s.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		id := uint32(2*sent + 1)
		pair := frames(t, func(fr *http2.Framer) error {
			return errors.Join(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.block.Bytes(), EndHeaders: true, EndStream: true}), fr.WriteRSTStream(id, http2.ErrCodeCancel))
		})
		if _, err := s.conn.Write(pair); err != nil {
			break // told to calm down
		}
	}
	u.others(t)
	was.check(t, 15*floodStreams+50)
	_ = s.conn.Close()
	end := u.record("the connection", func(r logLine) bool { return r.Kind == kindConnection && r.Requests > 1 })
	if end.Requests > int64(sent) || sent < 1500 && u.errorsOf(t, "too_many_early_resets") == 0 {
		t.Errorf("%d sent, record %+v", sent, end)
	}
	u.eventually("a record of each request", func() bool {
		n := int64(0)
		for _, r := range u.records() {
			if r.Kind == kindRequest && r.Event == "end" && r.Conn == end.Conn {
				n++
			}
		}
		// A handler that began as the connection ended is not in its record, and has one of its own.
		return n >= end.Requests && n <= int64(sent)
	})
	u.eventually("rest at the upstream", func() bool { return u.working.Load() == 0 })
}

// TestFloodContinuation sends a head that never ends (CVE-2023-45288), and one that
// a few bytes unfold into gigabytes. The connection ends; the upstream hears nothing.
func TestFloodContinuation(t *testing.T) {
	u := newUnderAttack(t, nil)
	literal := func(s *h2session, value string, never bool) []byte {
		s.block.Reset()
		s.must(s.enc.WriteField(hpack.HeaderField{Name: "x-a", Value: value, Sensitive: never}))
		return bytes.Clone(s.block.Bytes())
	}
	for name, piece := range map[string]func(*h2session) []byte{
		"fields": func(s *h2session) []byte { return bytes.Repeat(literal(s, strings.Repeat("a", 1000), true), 15) },
		"one field": func(*h2session) []byte {
			return append([]byte{0x10, 0x7f, 0xff, 0xff, 0xff, 0x07}, make([]byte, 10000)...)
		},
		"indexed bomb": func(s *h2session) []byte {
			return append(literal(s, strings.Repeat("a", 3900), false), bytes.Repeat([]byte{0xbe}, 16000)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := u.with(t).h2session(u.pki.grant(time.Hour, "GET /**"))
			was := measure()
			s.block.Reset()
			for _, f := range h2fields("GET", "/ok") {
				s.must(s.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
			}
			s.must(s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Clone(s.block.Bytes()), EndStream: true}))
			more := piece(s)
			sent, ended := pour(t, s.conn, frames(t, func(fr *http2.Framer) error { return fr.WriteContinuation(1, false, more) }), 64<<20)
			if !ended {
				t.Errorf("%d MB were taken", sent>>20)
			}
			was.check(t, 50)
		})
	}
	if n := u.reached.Load(); n != 0 {
		t.Errorf("the upstream was reached %d times", n)
	}
	u.others(t)
	u.record("such a connection", func(r logLine) bool { return r.Kind == kindConnection && r.Requests == 0 })
}

// TestFloodUnread sends frames that must be answered, and reads no answer
// (CVE-2019-9512, CVE-2019-9515). The queue of answers has an end, and the
// connection ends with it; or one answer stands for many.
func TestFloodUnread(t *testing.T) {
	u := newUnderAttack(t, nil)
	for name, tt := range map[string]struct {
		write func(*http2.Framer) error
		most  int
		ends  bool
	}{
		"PING":     {func(fr *http2.Framer) error { return fr.WritePing(false, [8]byte{}) }, 256 << 20, true},
		"SETTINGS": {func(fr *http2.Framer) error { return fr.WriteSettings() }, 2 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := u.with(t).h2session(u.pki.grant(time.Hour, "GET /**"))
			was := measure()
			// The buffer for answers stays what the system gives it: one made smaller on an open connection shrinks the
			// window, and then the system drops what acknowledges the flood, too.
			sent, ended := pour(t, s.conn, frames(t, tt.write), tt.most)
			if ended != tt.ends {
				t.Errorf("%d MB were taken, and the connection ended: %v", sent>>20, ended)
			}
			was.check(t, 50)
		})
	}
	u.others(t)
	u.record("the connection that was ended", func(r logLine) bool { return r.Kind == kindConnection && r.Requests == 0 })
}

// TestFloodEmptyFrames sends frames that carry nothing and never end
// (CVE-2019-9518): they cost no memory, and the request is what it would be without.
func TestFloodEmptyFrames(t *testing.T) {
	u := newUnderAttack(t, nil)
	s := u.h2session(u.pki.grant(time.Hour, "POST /**"))
	was := measure()
	s.send(1, h2fields("POST", "/sink"), false)
	if _, ended := pour(t, s.conn, frames(t, func(fr *http2.Framer) error { return fr.WriteData(1, false, nil) }), 1<<20); ended {
		t.Log("the connection was ended")
		return
	}
	u.others(t)
	was.check(t, 50)
	s.must(s.fr.WriteData(1, true, nil))
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			if h.PseudoValue("status") != "200" {
				t.Errorf("status %s", h.PseudoValue("status"))
			}
			break
		}
	}
	r := u.record("it", func(r logLine) bool { return r.Path == "/sink" && r.Event == "end" })
	if r.BytesIn != 0 || r.Decision != decisionAllow {
		t.Errorf("record %+v", r)
	}
}

// TestStallWindows opens as many endless downloads as it may and takes none of the
// bytes (CVE-2019-9517). What waits is bounded, others are served, a stream more is
// refused, and the end of the grant ends it all, at the upstream too.
func TestStallWindows(t *testing.T) {
	u := newUnderAttack(t, nil)
	id := newGrantID(t)
	s := u.h2session(u.pki.grantWithID(id, time.Hour, "GET /**"))
	s.must(s.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	was := measure()
	for i := range uint32(floodStreams) {
		s.send(2*i+1, h2fields("GET", "/endless"), true)
	}
	u.eventually("all streams", func() bool { return u.working.Load() == floodStreams })
	s.send(2*floodStreams+1, h2fields("GET", "/endless"), true)
	for refused := false; !refused; {
		f, err := s.fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok {
			refused = true
			if r.StreamID != 2*floodStreams+1 {
				t.Errorf("stream %d was reset: %v", r.StreamID, r.ErrCode)
			}
		}
	}
	u.others(t)
	was.check(t, 15*floodStreams+50)
	if u.errorsOf(t, "over_max_streams") == 0 {
		t.Error("no metric tells of the stream too many")
	}
	u.px.live.cutRevoked([]string{id})
	u.eventually("rest at the upstream", func() bool { return u.working.Load() == 0 })
}

// TestBadFrames: what breaks HTTP/2 itself ends the connection, which is told why
// and recorded. Those that net/http has a name for are counted under it.
func TestBadFrames(t *testing.T) {
	u := newUnderAttack(t, nil)
	raw := func(kind http2.FrameType, flags http2.Flags, stream uint32, payload ...byte) func(*http2.Framer) error {
		return func(fr *http2.Framer) error { return fr.WriteRawFrame(kind, flags, stream, payload) }
	}
	all := map[string]struct {
		write   func(*http2.Framer) error
		code    http2.ErrCode
		counted string
	}{
		"window overflow": {raw(http2.FrameWindowUpdate, 0, 0, 0x7f, 0xff, 0xff, 0xff), http2.ErrCodeFlowControl, ""},
		"zero increment":  {raw(http2.FrameWindowUpdate, 0, 0, 0, 0, 0, 0), http2.ErrCodeProtocol, "frame_windowupdate_zero_inc_conn"},
		"unasked ack":     {func(fr *http2.Framer) error { return errors.Join(fr.WriteSettingsAck(), fr.WriteSettingsAck()) }, http2.ErrCodeProtocol, "ack_mystery"},
		"push promise":    {raw(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, 0, 0, 0, 2), http2.ErrCodeProtocol, "push_promise"},
		"data on idle":    {raw(http2.FrameData, 0, 5, 'x'), http2.ErrCodeProtocol, "data_on_idle"},
		"even stream":     {raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 2, 0x82), http2.ErrCodeProtocol, "headers_even"},
		"oversized frame": {raw(http2.FrameData, 0, 1, make([]byte, 1<<21)...), http2.ErrCodeFrameSize, ""},
		"broken hpack":    {raw(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), http2.ErrCodeCompression, ""},
		"interleaved head": {func(fr *http2.Framer) error {
			return errors.Join(raw(http2.FrameHeaders, 0, 1, 0x82)(fr), fr.WritePing(false, [8]byte{}))
		}, http2.ErrCodeProtocol, ""},
	}
	sessions := map[string]*h2session{} // all at once: each lingers for a second when it is told
	for name, tt := range all {
		sessions[name] = u.h2session(u.pki.grant(time.Hour, "GET /**"))
		_, _ = sessions[name].conn.Write(frames(t, tt.write)) // the end may come in between
	}
	for name, tt := range all {
		code, told := sessions[name].goAwayCode()
		if !told || code != tt.code {
			t.Errorf("%s: told %v, %v; want %v", name, told, code, tt.code)
		}
		if tt.counted != "" && u.errorsOf(t, tt.counted) != 1 {
			t.Errorf("%s: %s was counted %d times", name, tt.counted, u.errorsOf(t, tt.counted))
		}
	}
	u.others(t)
	u.eventually("a record of each", func() bool {
		n := 0
		for _, r := range u.records() {
			if r.Kind == kindConnection && r.Requests == 0 {
				n++
			}
		}
		return n >= len(all)
	})
}

// TestSlowloris holds connections by heads that come byte by byte, and by bodies
// that do. The heads are cut off in time however lively they are; of bodies a grant
// has as many as it may have connections, and none past its end.
func TestSlowloris(t *testing.T) {
	const most = 30
	u := newUnderAttack(t, func(s *Settings) {
		s.Limits.HeaderTimeout = 2 * time.Second // a busy machine sends the heads that are whole within it
		s.Limits.MaxConnectionsPerGrant = most
	})
	id := newGrantID(t)
	cert := u.pki.grantWithID(id, time.Hour, "POST /**")
	drip := func(head string) *tls.Conn {
		c := u.dial(cert, "http/1.1")
		go func() { // ends with the connection
			_, err := io.WriteString(c, head)
			for ; err == nil; time.Sleep(20 * time.Millisecond) {
				_, err = io.WriteString(c, "a")
			}
		}()
		return c
	}
	was := measure()
	var heads, bodies []*tls.Conn
	for range most / 2 {
		heads = append(heads, drip("POST /sink HTTP/1.1\r\nHost: localhost\r\nX: "))
	}
	for range most / 2 {
		bodies = append(bodies, drip("POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"))
	}
	for _, c := range heads {
		if got, _ := io.ReadAll(c); !bytes.HasPrefix(got, []byte("HTTP/1.1 408 ")) {
			t.Errorf("a slow head was answered %.60q", got)
		}
	}
	u.eventually("a record of each head", func() bool {
		n := 0
		for _, r := range u.records() {
			if r.Reason == "slow_headers" && r.Status == 408 && r.Grant == id {
				n++
			}
		}
		return n == most/2
	})
	u.eventually("the bodies", func() bool { return u.working.Load() == most/2 })
	u.eventually("the end of the slow heads", func() bool { return u.px.live.len() == most/2 })
	for range most / 2 {
		bodies = append(bodies, drip("POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"))
	}
	u.eventually("as many as may be", func() bool { return u.working.Load() == most })
	_ = readError(u.dial(cert, "http/1.1"))
	u.record("one too many", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonLimit && r.Grant == id })
	u.others(t)
	was.check(t, 20*most)
	u.px.live.cutRevoked([]string{id})
	for _, c := range bodies {
		if err := readError(c); err == nil {
			t.Error("an upload goes on")
		}
	}
	u.eventually("rest at the upstream", func() bool { return u.working.Load() == 0 })
}

// TestSlowHeadHTTP2: there, a head that does not end is on a connection without a
// request, and goes with those.
func TestSlowHeadHTTP2(t *testing.T) {
	u := newUnderAttack(t, func(s *Settings) { s.Limits.IdleTimeout = time.Second })
	s := u.h2session(u.pki.grant(time.Hour, "GET /**"))
	s.must(s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}, EndStream: true}))
	if _, err := io.Copy(io.Discard, s.conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection does not end")
	}
	u.record("it", func(r logLine) bool { return r.Kind == kindConnection && r.Requests == 0 })
}

// TestFloodPipeline sends requests without end and reads no answer: the proxy does
// not read ahead of what it has answered.
func TestFloodPipeline(t *testing.T) {
	u := newUnderAttack(t, nil)
	c := u.dial(u.pki.grant(time.Hour, "GET /**"), "http/1.1")
	if tcp, ok := c.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(64 << 10)
	}
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	was := measure()
	piece := []byte(strings.Repeat("GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n", 300))
	var err error
	for sent := 0; err == nil && sent < 64<<20; sent += len(piece) {
		_, err = c.Write(piece)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the writer ended with %v; it should have to wait", err)
	}
	was.check(t, 50)
	u.others(t)
}
