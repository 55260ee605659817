package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestStalledStream: a service that reads no more stops the program that speaks to it, and
// nobody else: not the other streams of the same carrier, and not its renewal.
func TestStalledStream(t *testing.T) {
	unread := make(chan struct{})
	defer close(unread)
	r := start(t, options{edit: tcpService, upstream: servingTCP(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[0] == 's' {
			<-unread
			return
		}
		_, _ = c.Write(first)
		_, _ = io.Copy(c, c)
	})}).renewing(150*time.Minute, "tcp")
	addr := r.listen(tcpConnector)
	talk := carriedTCP(r.env, addr)
	r.talk(talk, "at the beginning")
	stuck := dialLocal(t, addr)
	var sent atomic.Int64
	go func() { // ends with the connection
		for piece := bytes.Repeat([]byte("s"), 64<<10); ; {
			n, err := stuck.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	r.eventually("end of what is taken", func() bool {
		before := sent.Load()
		time.Sleep(300 * time.Millisecond)
		return before > 0 && sent.Load() == before
	})
	r.live3(talk)
}

// TestSilentProgram: a program that says nothing, and has not said that it is done,
// hears all the same that what it listens to has been cut.
func TestSilentProgram(t *testing.T) {
	r := start(t, options{upstream: echoGRPC(t)}).renewing(time.Hour, "grpc a.B/*")
	s := carriedStream(r.env, r.listen(nil))
	m := []byte("x")
	if err := s.SendMsg(&m); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&m); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() { // ends with the stream, or the test
		var m []byte
		heard <- s.RecvMsg(&m)
	}()
	r.px.live.cutRevoked([]string{r.id})
	select {
	case err := <-heard:
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("it looks whole: %v", err)
		}
	case <-time.After(patience):
		t.Error("nobody told it")
	}
}
