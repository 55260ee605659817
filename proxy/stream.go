package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxPiece is how much a piece of a stream holds.
const maxPiece = 32 << 10

// stream is the proxy's end of a CONNECT stream, as a net.Conn.
//
// What the client says is the body of its request, and its end is the body's.
// What the client is told is cut into pieces, two bytes of length before each, and
// an empty piece says that no more will come: the answer itself cannot end before
// the client has, or the client could not go on speaking, as it can on a socket
// whose other half is closed. An answer that ends without the empty piece, or is
// reset, broke off.
type stream struct {
	addresses
	near net.Conn // reads what the client says; has deadlines, which a body has not
	body io.ReadCloser
	rc   *http.ResponseController

	broken atomic.Bool
	once   sync.Once
	closed chan struct{} // closed by Close
	pumped chan struct{} // closed when all has been read; then why may be read
	why    error         // reading ended with; nil at a good end

	mu   sync.Mutex // held while writing; owns what follows
	w    io.Writer
	buf  []byte
	over bool // nothing more may be written

	life sync.RWMutex // owns gone; rc is used under it
	gone bool         // the handler returns, and net/http takes w back
}

// newStream makes a stream of a request. Call start, then finish before the handler returns.
func newStream(w http.ResponseWriter, r *http.Request, carrier net.Conn) *stream {
	return &stream{
		addresses: addresses{carrier.LocalAddr(), carrier.RemoteAddr()}, body: r.Body, rc: http.NewResponseController(w),
		closed: make(chan struct{}), pumped: make(chan struct{}),
	}
}

// start answers the request: from now on there is a stream.
func (s *stream) start(w http.ResponseWriter) {
	near, far := net.Pipe()
	s.near, s.w = near, w
	w.WriteHeader(http.StatusOK)
	_ = s.rc.Flush() // reading and writing fail as well
	go s.pump(far)   // ends with the body, which Close closes
}

// pump hands on what the client says until its end.
func (s *stream) pump(far net.Conn) {
	defer func() { _ = far.Close() }() // is the end of what can be read
	defer close(s.pumped)
	buf := make([]byte, maxPiece)
	for {
		n, err := s.body.Read(buf)
		if n > 0 {
			if _, werr := far.Write(buf[:n]); werr != nil {
				s.why = net.ErrClosed
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.why = fmt.Errorf("%w: %w", errTruncated, err) // reset, or its carrier has ended
			}
			return
		}
	}
}

// Read is net.Conn's. Its end is io.EOF only if the client said that it has ended.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.near.Read(p)
	if errors.Is(err, io.EOF) {
		<-s.pumped
		if s.why != nil {
			err = s.why
		}
	}
	return n, err
}

// Write is net.Conn's.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for done < len(p) {
		if s.over {
			return done, net.ErrClosed
		}
		n := min(len(p)-done, maxPiece)
		s.buf = append(binary.BigEndian.AppendUint16(s.buf[:0], uint16(n)), p[done:done+n]...)
		if err := s.say(s.buf); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (s *stream) say(b []byte) error {
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

// CloseWrite tells the client that no more will come.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sayEnd()
}

func (s *stream) sayEnd() error {
	if s.over {
		return nil
	}
	s.over = true
	return s.say([]byte{0, 0})
}

// SetLinger with 0 has Close break the stream off, as it does on a socket.
func (s *stream) SetLinger(sec int) error {
	if sec == 0 {
		s.broken.Store(true)
	}
	return nil
}

// Close is net.Conn's. A stream that is written to meanwhile breaks off.
func (s *stream) Close() error {
	s.once.Do(func() {
		if !s.broken.Load() {
			s.goodbye()
		}
		if s.broken.Load() {
			_ = s.SetWriteDeadline(time.Unix(1, 0)) // who writes waits no longer
		}
		_ = s.body.Close() // and who reads
		_ = s.near.Close()
		close(s.closed)
	})
	return nil
}

// goodbye says the end where it still can.
func (s *stream) goodbye() {
	if !s.mu.TryLock() {
		s.broken.Store(true)
		return
	}
	defer s.mu.Unlock()
	// A client that does not read must not hold up the end: past this the stream is reset.
	_ = s.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if s.sayEnd() != nil {
		s.broken.Store(true)
	}
}

// finish waits for whoever still writes. It says whether the stream ended well.
func (s *stream) finish() bool {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.life.Lock()
	s.gone = true
	s.life.Unlock()
	<-s.pumped
	return !s.broken.Load()
}

// SetDeadline is net.Conn's.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline is net.Conn's.
func (s *stream) SetReadDeadline(t time.Time) error { return s.near.SetReadDeadline(t) }

// SetWriteDeadline is net.Conn's. When it passes, the stream is reset.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.gone {
		return net.ErrClosed
	}
	return s.rc.SetWriteDeadline(t)
}

// pieces reads a stream at the client's end.
type pieces struct {
	from io.Reader
	left int
	over atomic.Bool
}

func (r *pieces) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.over.Load() {
		return 0, io.EOF
	}
	if r.left == 0 {
		var head [2]byte
		if _, err := io.ReadFull(r.from, head[:]); err != nil {
			return 0, brokeOff(err)
		}
		if r.left = int(binary.BigEndian.Uint16(head[:])); r.left == 0 {
			r.over.Store(true)
			return 0, io.EOF
		}
	}
	n, err := r.from.Read(p[:min(len(p), r.left)])
	r.left -= n
	if n > 0 {
		return n, nil // an error comes again
	}
	return 0, brokeOff(err)
}

// brokeOff is the error of a stream whose end nobody said. HTTP/2 has it end as the last write did, on a carrier
// that was cut and that it has closed since: that is not our own closing, and no good end.
func brokeOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return errTruncated
	}
	return err
}
