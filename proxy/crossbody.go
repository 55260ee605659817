package proxy

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// ferry carries a request's body to the upstream. Its goroutine owns what stands
// first until done is closed.
type ferry struct {
	whole bool // all of it was sent

	done chan struct{}
}

// errShort is returned when a body ended before its length.
var errShort = errors.New("the request's body is shorter than it was said to be")

// run carries a body of that length; one of a length that nobody knows in chunks.
func (u *ferry) run(b *backend, body *requestBody, length int64, pool *upstream) {
	defer close(u.done)
	buf := pool.buffer()
	defer pool.release(buf)
	var err error
	if length < 0 {
		err = chunkedTo(b, body, *buf)
	} else {
		err = countedTo(b, body, length, *buf)
	}
	if u.whole = err == nil; !u.whole && body.failed.Load() {
		// Broken off, not closed: the upstream must not take half a body for a whole one.
		breakOff(b)
	}
}

// countedTo sends a body that must have so many bytes: with more, the rest would be
// the next request on the connection, one that nobody matched.
func countedTo(b *backend, body *requestBody, left int64, buf []byte) error {
	for {
		n, err := body.Read(buf)
		if left -= int64(n); left < 0 {
			body.failed.Store(true)
			return errBodyTooLarge
		}
		if n > 0 {
			if _, werr := b.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return err
		case left > 0:
			body.failed.Store(true)
			return errShort
		default:
			return nil
		}
	}
}

// chunkedTo sends a body in chunks of what is read at once, and the trailers that may pass.
func chunkedTo(b *backend, body *requestBody, buf []byte) error {
	const room = 8 // for a size line
	for {
		n, err := body.Read(buf[room : len(buf)-2])
		if n > 0 {
			size := append(strconv.AppendInt(make([]byte, 0, room), int64(n), 16), "\r\n"...)
			begin := room - len(size)
			copy(buf[begin:], size)
			end := copy(buf[room+n:], "\r\n") + room + n
			if _, werr := b.Write(buf[begin:end]); werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return err
		default:
			end := append(buf[:0], "0\r\n"...)
			for name, values := range body.to {
				for _, v := range values {
					if !isToken(name) || !plainValue(v) {
						body.failed.Store(true)
						return errAnswer
					}
					end = append(append(append(append(end, name...), ": "...), v...), "\r\n"...)
				}
			}
			_, err = b.Write(append(end, "\r\n"...))
			return err
		}
	}
}

// inTime is sending.inTime.
func (u *ferry) inTime() bool {
	return u == nil || doneSoon(u.done) && u.whole
}

// stop ends it. The connection to the upstream is closed by now, unless all was sent.
func (u *ferry) stop(body *requestBody) {
	if u == nil {
		return
	}
	select {
	case <-u.done:
	default:
		_ = body.Close() // ends who reads
		<-u.done
	}
}

// errClient is returned when the client takes no more of an answer.
var errClient = errors.New("the client is gone")

// inflow hands an answer's body on to net/http, each part as it comes.
type inflow struct {
	x       *exchange
	b       *backend
	flusher http.Flusher // nil: its end is time enough
	buf     []byte       // what is read next goes here
	rest    []byte       // read and not yet handed on
}

// fill reads what comes next from the upstream, if nothing is there.
func (w *inflow) fill() error {
	if len(w.rest) > 0 {
		return nil
	}
	n, err := w.b.Read(w.buf)
	w.rest = w.buf[:n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// first is fill, and sends the head of a stream whose first bytes are long in coming.
func (w *inflow) first() error {
	if len(w.rest) > 0 {
		return nil
	}
	head := flushSoon(w.flusher)
	defer head.stop()
	return w.fill()
}

func (w *inflow) give(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := w.x.w.Write(b)
	w.x.out.Add(int64(n))
	if err != nil {
		return errors.Join(errClient, err)
	}
	return nil
}

// flush sends what there is, if nothing more has come meanwhile.
func (w *inflow) flush() {
	if w.flusher != nil && len(w.rest) == 0 {
		w.flusher.Flush()
	}
}

func (w *inflow) length(left int64) error {
	if left == 0 {
		return nil
	}
	// net/http keeps 4 KB of a body until the handler ends.
	w.x.whole = left <= int64(len(w.rest)) && left <= 4<<10 && w.flusher == nil
	err := w.first()
	for ; err == nil; err = w.fill() {
		n := min(left, int64(len(w.rest)))
		part := w.rest[:n]
		w.rest = w.rest[n:]
		if err := w.give(part); err != nil {
			return err
		}
		if left -= n; left == 0 {
			return nil
		}
		w.flush()
	}
	return err
}

func (w *inflow) chunks() error {
	var k chunks
	err := w.first()
	for ; err == nil; err = w.fill() {
		for len(w.rest) > 0 && k.state != chunkDone {
			n, data, bad := k.next(w.rest)
			if bad != nil {
				return errAnswer
			}
			w.rest = w.rest[n:]
			if err := w.give(data); err != nil {
				return err
			}
		}
		if k.state == chunkDone {
			w.trailers(string(k.tail))
			return nil
		}
		w.flush()
	}
	return err
}

// trailers hands on the trailers: they are declared or not, and that is the upstream's to say.
func (w *inflow) trailers(tail string) {
	if tail == "" {
		return
	}
	if w.flusher != nil {
		w.flusher.Flush() // else net/http says a length, beside which the next hop has no trailers
	}
	h := w.x.w.Header()
	for line := range strings.Lines(tail) {
		name, value, _ := strings.Cut(line, ":")
		name = http.TrailerPrefix + http.CanonicalHeaderKey(name)
		h[name] = append(h[name], strings.Trim(value, " \t\r\n"))
	}
}

// untilClose hands on what comes until the upstream closes.
func (w *inflow) untilClose() error {
	err := w.first()
	for ; err == nil; err = w.fill() {
		part := w.rest
		w.rest = nil
		if err := w.give(part); err != nil {
			return err
		}
		w.flush()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
