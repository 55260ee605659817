package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// socketPair is both ends of a TCP connection over loopback; near is read and
// written as the proxy does it.
func socketPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var d net.Dialer
	far, err = d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near = directly(c)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// TestDirect: a socket that is read and written past the scheduler waits, ends and
// fails as net's own does.
func TestDirect(t *testing.T) {
	t.Run("more than the kernel takes", func(t *testing.T) {
		near, far := socketPair(t)
		all := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
		wrote := make(chan error, 1)
		go func() {
			n, err := near.Write(all)
			if err == nil && n != len(all) {
				err = io.ErrShortWrite
			}
			wrote <- errors.Join(err, near.Close())
		}()
		got, err := io.ReadAll(far)
		if err = errors.Join(err, <-wrote); err != nil || !bytes.Equal(got, all) {
			t.Errorf("%d bytes of %d, %v", len(got), len(all), err)
		}
	})
	t.Run("the end", func(t *testing.T) {
		near, far := socketPair(t)
		if _, err := io.WriteString(far, "all"); err != nil {
			t.Fatal(err)
		}
		if err := far.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(near); err != nil || string(got) != "all" {
			t.Errorf("%q, %v", got, err)
		}
		if n, err := near.Read(nil); n != 0 || err != nil {
			t.Errorf("no bytes: %d, %v", n, err)
		}
	})
	t.Run("a deadline", func(t *testing.T) {
		near, far := socketPair(t)
		if err := near.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := near.Read(make([]byte, 1))
		var late net.Error
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &late) || !late.Timeout() {
			t.Errorf("%d, %v", n, err)
		}
		if err := near.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(far, "x"); err != nil {
			t.Fatal(err)
		}
		if n, err := near.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("after it: %d, %v", n, err)
		}
		if err := near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := near.Write(make([]byte, 64<<20)); n == 64<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("nobody reads: %d, %v", n, err)
		}
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		near, _ := socketPair(t)
		ended := make(chan error, 1)
		go func() {
			_, err := near.Read(make([]byte, 1))
			ended <- err
		}()
		time.Sleep(20 * time.Millisecond) // it may be waiting
		if err := near.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		near, far := socketPair(t)
		if _, err := io.WriteString(near, "unread"); err != nil {
			t.Fatal(err)
		}
		breakOff(far)
		if _, err := near.Read(make([]byte, 1)); !isLoss(err) {
			t.Errorf("read: %v", err)
		}
		if _, err := near.Write([]byte("x")); !isLoss(err) {
			t.Errorf("write: %v", err)
		}
	})
}
