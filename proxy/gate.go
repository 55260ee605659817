package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// gate stands between TLS and net/http on an HTTP/1 connection and lets through
// only what can be read in one way. net/http is lenient where a proxy must not
// be: it takes lines that end in a bare LF, folded headers, Transfer-Encoding
// beside Content-Length and repeated equal Content-Lengths, and drops what it did
// not believe before a handler sees it. Each of these has split one request in
// two between a proxy and an upstream that read them otherwise.
//
// The gate follows heads and bodies byte by byte and hands them on unchanged,
// never past the end of a message in one Read. At the first violation it hands
// net/http bytes that no parser takes, which makes net/http answer and close, and
// puts its own answer, which says what was wrong, in the place of that one.
//
// Reads come from one goroutine at a time; that goroutine owns every field but
// the atomic ones.
type gate struct {
	tls    secureConn
	c      *conn
	limits gateLimits
	onBad  func(*violation) []byte // records it and renders the answer

	state  gateState
	line   []byte // the part of the current line that came with earlier reads
	rest   []byte // read, and beyond the message last handed on
	head   headFacts
	need   int64 // bytes left of the body or chunk
	later  error // a read error that came together with bytes
	poison []byte
	armed  atomic.Bool // the next write is net/http's own answer to the poison
	bad    atomic.Pointer[violation]
	first  []byte // the request line, as far as it was good
}

type gateLimits struct{ head, target, lines int }

// violation is why a message was not let through.
type violation struct {
	status int
	reason string
	detail string
	method string // as far as they were read
	target string
}

type gateState uint8

const (
	gateStart gateState = iota // before or in a request line
	gateHeader
	gateBody
	gateChunkSize
	gateChunkData
	gateChunkEnd
	gateTrailer
	gateTunnel // an Upgrade was asked for: what follows is not ours to read
)

// unreadable is a head that net/http refuses wherever it turns up: it holds NUL,
// and at least the four bytes that net/http waits for between requests.
const unreadable = "\x00\x00\x00\x00\r\n\r\n"

// secureConn is what a gate needs of *tls.Conn.
type secureConn interface {
	net.Conn
	CloseWrite() error
}

func newGate(t secureConn, c *conn, cfg *config, onBad func(*violation) []byte) *gate {
	return &gate{
		tls: t, c: c, onBad: onBad,
		limits: gateLimits{head: cfg.limits.headerBytes, target: cfg.limits.targetBytes, lines: maxHeaderLines},
		head:   freshHead(),
	}
}

// Read hands on the next bytes of the current message.
func (g *gate) Read(p []byte) (int, error) {
	if g.bad.Load() != nil {
		return g.readPoison(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	fromRest := len(g.rest) > 0
	var n int
	var err error
	switch {
	case fromRest:
		n = copy(p, g.rest)
	case g.later != nil:
		n, err = 0, g.later
	default:
		n, err = g.tls.Read(p)
	}
	if n == 0 {
		return g.readError(p, err)
	}
	used, bad := g.feed(p[:n])
	switch {
	case fromRest:
		g.rest = g.rest[used:]
	case used < n:
		g.rest = bytes.Clone(p[used:n])
	}
	g.later = err
	if bad != nil {
		return g.violated(p, used, bad)
	}
	return used, nil
}

// feed follows b until the end of a message, of b, or of what can be allowed,
// and returns how much of b may be handed on.
func (g *gate) feed(b []byte) (int, *violation) {
	for i := 0; i < len(b); {
		switch g.state {
		case gateTunnel:
			return len(b), nil
		case gateBody, gateChunkData:
			n := int(min(g.need, int64(len(b)-i)))
			i += n
			if g.need -= int64(n); g.need > 0 {
				continue
			}
			if g.state == gateBody {
				g.nextMessage()
				return i, nil
			}
			g.state = gateChunkEnd
		default:
			j := bytes.IndexByte(b[i:], '\n')
			if j < 0 {
				if bad := g.keep(b[i:]); bad != nil {
					return i, bad
				}
				return len(b), nil
			}
			line := b[i : i+j+1]
			if len(g.line) > 0 {
				if bad := g.keep(line); bad != nil {
					return i, bad
				}
				line = g.line
			}
			ended, bad := g.endOfLine(line)
			g.line = g.line[:0]
			if bad != nil {
				return i, bad
			}
			i += j + 1
			if ended {
				return i, nil
			}
		}
	}
	return len(b), nil
}

// keep stores the part of a line that has arrived, within the head's limit.
func (g *gate) keep(part []byte) *violation {
	if inChunks := g.state == gateChunkSize || g.state == gateChunkEnd; inChunks {
		if len(g.line)+len(part) > 64 {
			return badChunk()
		}
	} else if g.head.size+len(g.line)+len(part) > g.limits.head {
		return tooLarge()
	}
	g.line = append(g.line, part...)
	return nil
}

// endOfLine judges one whole line, LF included, and says whether a message ends with it.
func (g *gate) endOfLine(line []byte) (ended bool, bad *violation) {
	if g.state != gateChunkSize && g.state != gateChunkEnd {
		if g.head.size += len(line); g.head.size > g.limits.head {
			return false, tooLarge()
		}
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return false, bareLF()
	}
	line = line[:len(line)-2]
	switch g.state {
	case gateStart:
		g.state = gateHeader
		return false, g.requestLine(line)
	case gateHeader:
		if len(line) > 0 {
			return false, g.head.header(line, g.limits.lines)
		}
		return g.endOfHead()
	case gateChunkSize:
		return false, g.chunkSize(line)
	case gateChunkEnd:
		if len(line) > 0 {
			return false, badChunk()
		}
		g.state = gateChunkSize
		return false, nil
	case gateTrailer:
		if len(line) > 0 {
			return false, g.head.trailer(line, g.limits.lines)
		}
		g.nextMessage()
		return true, nil
	case gateBody, gateChunkData, gateTunnel:
	}
	return false, badChunk()
}

func (g *gate) endOfHead() (ended bool, bad *violation) {
	if bad := g.head.judge(); bad != nil {
		return false, bad
	}
	switch {
	case g.head.upgrade:
		g.state = gateTunnel
		return true, nil
	case g.head.chunked:
		g.state = gateChunkSize
	case g.head.length > 0:
		g.state, g.need = gateBody, g.head.length
	default:
		g.nextMessage()
	}
	// The head goes out by itself, so that a body's first bytes are never in
	// net/http's hands while the head is still being judged.
	return true, nil
}

func (g *gate) nextMessage() {
	g.state, g.head, g.first = gateStart, freshHead(), g.first[:0]
	if cap(g.line) > 4096 {
		g.line = nil // one long line must not weigh on an idle connection
	}
}

// readError translates the end of the connection. Between messages it is handed
// on; inside a head it is a refused request.
func (g *gate) readError(p []byte, err error) (int, error) {
	inHead := g.state == gateHeader || g.state == gateStart && len(g.line) > 0
	if !inHead || err == nil {
		return 0, err
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return g.violated(p, 0, &violation{status: 408, reason: "slow_headers", detail: "the request head took too long"})
	case errors.Is(err, io.EOF):
		return g.violated(p, 0, &violation{status: 400, reason: "incomplete_head", detail: "the connection ended within a request head"})
	default:
		return 0, err
	}
}

// violated notes the violation and begins to hand on the poison, once the good
// bytes before it are out.
func (g *gate) violated(p []byte, used int, bad *violation) (int, error) {
	v := *bad
	method, rest, _ := bytes.Cut(g.first, []byte(" "))
	v.method, v.target = string(method), string(rest)
	inBody := g.state > gateHeader
	g.rest, g.line = nil, nil
	if !inBody {
		g.poison = []byte(unreadable)
	}
	g.bad.Store(&v)
	if used > 0 {
		return used, nil
	}
	return g.readPoison(p)
}

// readPoison makes net/http stop: within a head by bytes that it refuses, within
// a body by an error, which the handler turns into an answer.
func (g *gate) readPoison(p []byte) (int, error) {
	if len(g.poison) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, g.poison)
	g.poison = g.poison[n:]
	// While a handler runs, net/http reads one byte ahead to see whether the
	// client is still there: what it writes next is still that handler's answer.
	if len(p) > 1 {
		g.armed.Store(true)
	}
	return n, nil
}

// Write writes to the client; the answer of net/http to the poison is replaced.
func (g *gate) Write(b []byte) (int, error) {
	if g.armed.Load() && g.armed.CompareAndSwap(true, false) {
		if v := g.bad.Load(); v != nil && bytes.HasPrefix(b, []byte("HTTP/1.1 4")) {
			if _, err := g.tls.Write(g.onBad(v)); err != nil {
				return 0, err
			}
			return len(b), nil
		}
	}
	return g.tls.Write(b)
}

// Close closes the connection. After a refusal it first takes in some of what
// the client is still sending: closing over unread bytes resets the connection,
// and the client would see that instead of the answer.
func (g *gate) Close() error {
	if g.bad.Load() != nil && g.tls.CloseWrite() == nil {
		if err := g.tls.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err == nil {
			_, _ = io.CopyN(io.Discard, g.tls, 1<<20) // whatever comes is thrown away, errors too
		}
	}
	return g.tls.Close()
}

// CloseWrite ends our side.
func (g *gate) CloseWrite() error { return g.tls.CloseWrite() }

// LocalAddr is net.Conn's.
func (g *gate) LocalAddr() net.Addr { return g.tls.LocalAddr() }

// RemoteAddr is net.Conn's.
func (g *gate) RemoteAddr() net.Addr { return g.tls.RemoteAddr() }

// SetDeadline is net.Conn's.
func (g *gate) SetDeadline(t time.Time) error { return g.tls.SetDeadline(t) }

// SetReadDeadline is net.Conn's.
func (g *gate) SetReadDeadline(t time.Time) error { return g.tls.SetReadDeadline(t) }

// SetWriteDeadline is net.Conn's.
func (g *gate) SetWriteDeadline(t time.Time) error { return g.tls.SetWriteDeadline(t) }
