package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// clientStream is the connector's end of a stream, as a net.Conn.
type clientStream struct {
	addresses
	pieces
	in     *io.PipeWriter
	body   io.ReadCloser
	cancel context.CancelFunc
	broken atomic.Bool
}

var errBrokenOff = errors.New("broken off")

// Write is net.Conn's.
func (s *clientStream) Write(p []byte) (int, error) { return s.in.Write(p) }

// CloseWrite tells the service that no more will come.
func (s *clientStream) CloseWrite() error { return s.in.Close() }

// SetLinger with 0 has Close break the stream off, as it does on a socket.
func (s *clientStream) SetLinger(sec int) error {
	if sec == 0 {
		s.broken.Store(true)
	}
	return nil
}

// Close is net.Conn's.
func (s *clientStream) Close() error {
	defer s.cancel()
	if s.broken.Load() {
		_ = s.in.CloseWithError(errBrokenOff)
		return s.body.Close()
	}
	_ = s.in.Close()
	if s.over.Load() {
		// Both sides have said all. Giving the answer up before the proxy has heard our
		// end would reset the stream, and with it what is still on its way.
		late := time.AfterFunc(5*time.Second, s.cancel)
		_, _ = io.Copy(io.Discard, s.body) // there is nothing in it
		late.Stop()
	}
	return s.body.Close()
}

// SetDeadline is net.Conn's.
func (s *clientStream) SetDeadline(time.Time) error { return http.ErrNotSupported }

// SetReadDeadline is net.Conn's.
func (s *clientStream) SetReadDeadline(time.Time) error { return http.ErrNotSupported }

// SetWriteDeadline is net.Conn's.
func (s *clientStream) SetWriteDeadline(time.Time) error { return http.ErrNotSupported }

var _ net.Conn = (*clientStream)(nil)
