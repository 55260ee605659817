package proxy

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// sending carries the part of a request's body that did not come along with its
// head. Its goroutine owns what stands first until done is closed; the connection's
// owns the rest.
type sending struct {
	bad   *violation // the body is malformed
	gone  bool       // the client left
	whole bool       // all of it was sent

	begun   bool
	done    chan struct{}
	wants   http.Header // of the request, whose head is written over meanwhile
	bytes   atomic.Int64
	running atomic.Bool
	halted  atomic.Bool // the answer is complete: nobody waits for the rest
}

// reset makes it ready for the next request. Nobody looks at it meanwhile but tick.
func (u *sending) reset() {
	u.bad, u.gone, u.whole, u.begun, u.done, u.wants = nil, false, false, false, nil, nil
	u.bytes.Store(0)
	u.halted.Store(false)
}

// start begins to carry it.
func (u *sending) start(f *front, b *backend, head []byte) {
	u.begun, u.wants, u.done = true, f.wants(head), make(chan struct{})
	u.running.Store(true) // from now on no watch begins
	f.alone()
	f.disarm()
	if f.x.expect && f.r == f.w && !f.head.old {
		f.say([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	}
	go func() {
		defer close(u.done)
		defer u.running.Store(false)
		var err error
		if f.head.chunked {
			err = u.chunked(f, b)
		} else {
			err = u.counted(f, b, f.head.length-f.x.bytesIn)
		}
		u.whole = err == nil
		if u.bad != nil || u.gone {
			// Broken off, not closed: the upstream must not take half a body for a whole one.
			breakOff(b)
		}
	}()
}

// inTime says whether all of the body has been sent, or there was none to send.
func (u *sending) inTime() bool {
	return !u.begun || doneSoon(u.done) && u.whole
}

// doneSoon says whether what carries a body is done. An upstream may answer before the
// goroutine that wrote the last byte runs again.
func doneSoon(done <-chan struct{}) bool {
	wait := time.NewTimer(2 * time.Millisecond)
	defer wait.Stop()
	select {
	case <-done:
		return true
	case <-wait.C:
		return false
	}
}

// stop ends it. The connection to the upstream is closed by now.
func (u *sending) stop(f *front) {
	if !u.begun {
		return
	}
	if u.running.Load() {
		u.halted.Store(true)
		_ = f.tls.SetReadDeadline(past()) // fails on a closed socket, whose reader has ended
	}
	<-u.done
}

// read reads from the client and notes why it could not.
func (u *sending) read(f *front, p []byte) (int, error) {
	n, err := f.tls.Read(p)
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, u.lost(err)
}

func (u *sending) lost(err error) error {
	if !u.halted.Load() || !errors.Is(err, os.ErrDeadlineExceeded) {
		u.gone = true
	}
	return err
}

// counted carries a body of known length.
func (u *sending) counted(f *front, b *backend, left int64) error {
	if here := min(left, int64(f.w-f.r)); here > 0 {
		part := f.desk.in[f.r : f.r+int(here)]
		f.r += int(here)
		left -= here
		u.bytes.Add(here)
		if _, err := b.Write(part); err != nil {
			return err
		}
	}
	buf := f.p.up.buffer()
	defer f.p.up.release(buf)
	for left > 0 {
		n, err := u.read(f, (*buf)[:min(left, int64(len(*buf)))])
		if err != nil {
			return err
		}
		left -= int64(n)
		u.bytes.Add(int64(n))
		if _, err := b.Write((*buf)[:n]); err != nil {
			return err
		}
	}
	return nil
}

// chunked carries a chunked body, in chunks of our own: an upstream that counts in
// 32 bits takes a chunk of 4 GB and three bytes for one of three, and what stands
// behind these for the next request.
func (u *sending) chunked(f *front, b *backend) error {
	var k chunks
	out := f.p.up.buffer()
	defer f.p.up.release(out)
	f.grow(deskMost)
	for k.state != chunkDone {
		if f.r == f.w {
			if err := f.more(); err != nil {
				return u.lost(err)
			}
		}
		frame := (*out)[:0]
		for f.r < f.w && k.state != chunkDone {
			used, data, bad := k.next(f.desk.in[f.r:f.w])
			if bad != nil {
				u.bad = bad
				return errAnswer
			}
			f.r += used
			if len(data) > 0 {
				if most := f.p.cfg.limits.bodyBytes; u.bytes.Add(int64(len(data))) > most && most > 0 {
					u.bad = bodyTooLarge()
					return errBodyTooLarge
				}
				frame = append(strconv.AppendInt(frame, int64(len(data)), 16), "\r\n"...)
				frame = append(append(frame, data...), "\r\n"...)
			}
		}
		if k.state == chunkDone {
			frame = append(f.x.trailers(append(frame, "0\r\n"...), string(k.tail)), "\r\n"...)
		}
		if len(frame) > 0 {
			if _, err := b.Write(frame); err != nil {
				return err
			}
		}
	}
	return nil
}

// trailers appends the trailer lines that were announced and are the client's to say.
func (x *errand) trailers(b []byte, tail string) []byte {
	for line := range strings.Lines(tail) {
		name, _, _ := strings.Cut(line, ":")
		for _, may := range x.trailer {
			if strings.EqualFold(name, may) {
				b = append(b, line...)
				break
			}
		}
	}
	return b
}

// flow sends an answer's body on, each part as it comes: it may be a stream. The
// last part is sent after the record is written.
type flow struct {
	f    *front
	b    *backend
	out  []byte // to be sent; the head at first
	buf  []byte // what is read next goes here
	rest []byte // read and not yet sent
}

// send sends what is gathered and b. last says that the answer ends with it.
func (w *flow) send(b []byte, last bool) bool {
	f := w.f
	if last && !f.finish() {
		return false
	}
	if len(w.out) > 0 && len(b) > 0 {
		if len(b) <= cap(w.out)-len(w.out) {
			w.out, b = append(w.out, b...), nil
		} else {
			if _, err := f.tls.Write(w.out); err != nil {
				return w.broke(reasonClientGone)
			}
			w.out = w.out[:0]
		}
	}
	if len(b) == 0 {
		b = w.out
	}
	if len(b) > 0 {
		if _, err := f.tls.Write(b); err != nil {
			return w.broke(reasonClientGone)
		}
	}
	w.out = w.out[:0]
	return true
}

// broke says why the answer could not be sent to its end.
func (w *flow) broke(reason string) bool {
	// What is still sent up ends first: it may be what broke the upstream off.
	w.f.part()
	switch {
	case w.f.up.bad != nil:
		reason = w.f.up.bad.reason
	case w.f.up.gone || w.f.gone.Load():
		reason = reasonClientGone
	}
	w.f.x.reason = reason
	return false
}

// fill reads what comes next from the upstream.
func (w *flow) fill() error {
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

func (w *flow) length(left int64) bool {
	for {
		n := min(left, int64(len(w.rest)))
		part := w.rest[:n]
		w.rest = w.rest[n:]
		left -= n
		w.f.x.bytesOut += n
		if left == 0 {
			return w.send(part, true)
		}
		if !w.send(part, false) {
			return false
		}
		if w.fill() != nil {
			return w.broke(reasonUpstreamBroke)
		}
	}
}

// chunks passes chunks on as they are; to a client of HTTP/1.0, their data alone.
func (w *flow) chunks() bool {
	var k chunks
	for {
		all, used := w.rest, 0
		for used < len(all) && k.state < chunkTrailer {
			n, data, bad := k.next(all[used:])
			if bad != nil {
				return w.broke(reasonUpstreamBroke)
			}
			used += n
			w.f.x.bytesOut += int64(len(data))
			if w.f.head.old && len(data) > 0 && !w.send(data, false) {
				return false
			}
		}
		for w.rest = all[used:]; len(w.rest) > 0 && k.state == chunkTrailer; {
			n, _, bad := k.next(w.rest)
			if bad != nil {
				return w.broke(reasonUpstreamBroke)
			}
			w.rest = w.rest[n:]
		}
		part := all[:used]
		if w.f.head.old {
			part = nil
		}
		if k.state == chunkDone {
			if !w.f.head.old {
				part = append(append(append([]byte(nil), part...), k.tail...), "\r\n"...)
			}
			return w.send(part, true)
		}
		if len(part)+len(w.out) > 0 && !w.send(part, false) {
			return false
		}
		if w.fill() != nil {
			return w.broke(reasonUpstreamBroke)
		}
	}
}

// untilClose passes on what comes until the upstream closes; the client's
// connection then ends as well, with close_notify, which tells a whole answer from half a one.
func (w *flow) untilClose() bool {
	for {
		w.f.x.bytesOut += int64(len(w.rest))
		if !w.send(w.rest, false) {
			return false
		}
		w.rest = nil
		switch err := w.fill(); {
		case err == nil:
		case errors.Is(err, io.EOF) && w.f.c.cutReason() == "" && !w.f.gone.Load():
			return w.send(nil, true)
		default:
			return w.broke(reasonUpstreamBroke)
		}
	}
}
