package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// errForeignPage is returned when what comes in on a loopback port for bytes is
// the request of a foreign page.
var errForeignPage = errors.New("a request of a page that is not to come here")

const (
	// A browser writes the head of a request at once.
	firstLineWait = time.Second
	headWait      = 10 * time.Second
	maxFirstHead  = 64 << 10
)

// notForeign reads from a local connection, and nothing of a foreign page's. Each
// page that the user has open can make the browser send a request to a port on
// loopback, and its body is as good as typed to a service that skips what it does
// not understand: mail and key-value stores do. So the first bytes are held back
// while they may be a request of HTTP/1, and if they are one, its head is judged
// as it is where HTTP is carried.
type notForeign struct {
	net.Conn
	foreign func(r *http.Request) string
	held    []byte // has been judged and not been read
	judged  bool
}

func (f *notForeign) Read(p []byte) (int, error) {
	if !f.judged {
		f.judged = true
		if err := f.judge(); err != nil {
			return 0, err
		}
	}
	if len(f.held) > 0 {
		n := copy(p, f.held)
		f.held = f.held[n:]
		return n, nil
	}
	return f.Conn.Read(p)
}

// CloseWrite is net.TCPConn's.
func (f *notForeign) CloseWrite() error {
	if hc, ok := f.Conn.(halfCloser); ok {
		return hc.CloseWrite()
	}
	return nil
}

// SetLinger is net.TCPConn's.
func (f *notForeign) SetLinger(sec int) error {
	if tcp, ok := f.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

func (f *notForeign) judge() error {
	if err := f.hold(mayBeRequestLine, firstLineWait); err != nil {
		return err
	}
	switch line, _, whole := bytes.Cut(f.held, []byte("\n")); {
	case !mayBeRequestLine(f.held) && !whole:
		return nil
	case !whole && len(f.held) < maxFirstHead:
		return nil // whoever wrote it waits for an answer, or for a person
	case !whole:
		return fmt.Errorf("%w: its first line has no end", errForeignPage)
	case !isRequestLine(line):
		return nil
	}
	if err := f.hold(func(b []byte) bool { return !headEnds(b) }, headWait); err != nil {
		return err
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(f.held)))
	if err != nil {
		return fmt.Errorf("%w: %w", errForeignPage, err)
	}
	if why := f.foreign(r); why != "" {
		return fmt.Errorf("%w: %s", errForeignPage, why)
	}
	return nil
}

// hold reads on while more says so, up to a bound and, from the first byte on,
// for a while. The end of what can be read is no error here: it comes again.
func (f *notForeign) hold(more func([]byte) bool, atMost time.Duration) error {
	buf := make([]byte, 4<<10)
	timed := false
	for more(f.held) && len(f.held) < maxFirstHead {
		if len(f.held) > 0 && !timed {
			timed = true
			if err := f.SetReadDeadline(time.Now().Add(atMost)); err != nil {
				return err
			}
		}
		n, err := f.Conn.Read(buf)
		f.held = append(f.held, buf[:n]...)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
	}
	if !timed {
		return nil
	}
	return f.SetReadDeadline(time.Time{})
}

// mayBeRequestLine says whether b may go on to be the first line of a request.
func mayBeRequestLine(b []byte) bool {
	if bytes.IndexByte(b, '\n') >= 0 {
		return false
	}
	n := 0
	for n < len(b) && b[n] >= 'A' && b[n] <= 'Z' {
		n++
	}
	rest := b[n:]
	switch {
	case n > 16:
		return false
	case len(rest) == 0:
		return true
	case n == 0 || rest[0] != ' ':
		return false
	default:
		return len(rest) == 1 || rest[1] == '/'
	}
}

// isRequestLine says whether a line without its end is the first of a request.
func isRequestLine(line []byte) bool {
	i := bytes.LastIndexByte(line, ' ')
	return i > 0 && mayBeRequestLine(line) && bytes.HasPrefix(line[i+1:], []byte("HTTP/1."))
}

func headEnds(b []byte) bool {
	return bytes.Contains(b, []byte("\r\n\r\n")) || bytes.Contains(b, []byte("\n\n"))
}
