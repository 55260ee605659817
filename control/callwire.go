package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A call stream carries the writes that a follower hands to the leader: many at
// a time, without the framing, header tables and flow control that HTTP/2 spends
// on each. It begins with callMagic from the follower and callMagic back. It is as
// long as what HTTP/2 begins with: a node that does not know it closes the stream
// at once, and gets its calls by HTTP/2. Then frames, all integers big-endian:
//
//	length 4 | kind 1 | content
//
//	follower → leader   chain   slot 2 | a caller's chain, DER
//	                    call    number 8 | slot 2 | fields of forwardedCall
//	                    ping
//	leader → follower   answer  number 8 | status 2 | fields of callAnswer
//	                    pong
//
// A field is its length in 4 bytes and that many bytes. A slot keeps its chain
// until another is put there, so that a caller's comes once and not with each of
// its calls. The status is HTTP's, or one of the two below.
const callMagic = "HALLPASS-CALLS/1\r\n\r\n\r\n\r\n"

const (
	frameChain = iota + 1
	frameCall
	framePing
	frameAnswer
	framePong
)

const (
	statusBroken   = 0 // what became of the call is not known
	statusNotTaken = 1 // the node stops, and did not begin it

	// maxCallFrame bounds a frame: a body, and what is beside it.
	maxCallFrame = maxLeanBody + maxChainHeader
	// maxLeanBody is how long a body, or an answer's, may be here. What is longer
	// goes by HTTP/2.
	maxLeanBody = 128 << 10
	// callSlots is how many callers' chains a stream remembers.
	callSlots = 256
	// callWrite is how long the other end may take to accept what is written.
	callWrite = 10 * time.Second
)

var errCallFrame = errors.New("malformed frame")

// frameWriter sends frames. Those that come while others are being written go
// together with the next write.
type frameWriter struct {
	conn net.Conn

	mu      sync.Mutex
	waiting []byte // guarded by mu
	spare   []byte // guarded by mu; the buffer that is not waiting nor being written
	busy    bool   // guarded by mu; somebody writes
	err     error  // guarded by mu; the first that a write ended with
}

// send has build append frames to what is written next, and writes it unless
// somebody else is about to. began says whether build was called: when not,
// nothing of it was sent. build MUST be short.
func (w *frameWriter) send(build func(b []byte) []byte) (began bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false, w.err
	}
	w.waiting = build(w.waiting)
	if w.busy {
		return true, nil
	}
	w.busy = true
	for len(w.waiting) > 0 && w.err == nil {
		out := w.waiting
		w.waiting, w.spare = w.spare[:0], nil
		w.mu.Unlock()
		err := w.conn.SetWriteDeadline(time.Now().Add(callWrite))
		if err == nil {
			_, err = w.conn.Write(out)
		}
		w.mu.Lock()
		if w.err = err; cap(out) <= maxCallFrame {
			w.spare = out[:0]
		}
	}
	w.busy = false
	return true, w.err
}

// appendFrame appends a frame whose content fill appends.
func appendFrame(b []byte, kind byte, fill func(b []byte) []byte) []byte {
	at := len(b)
	b = fill(append(b, 0, 0, 0, 0, kind))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

func nothing(b []byte) []byte { return b }

func appendField(b []byte, v string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}

// readFrame reads one frame. The content is the caller's.
func readFrame(r io.Reader) (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 1 || size > maxCallFrame {
		return 0, nil, fmt.Errorf("%w: of %d bytes", errCallFrame, size)
	}
	content = make([]byte, size-1)
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, err
	}
	return head[4], content, nil
}

// frameReader takes a frame's content apart.
type frameReader struct {
	rest []byte
	bad  bool // it was shorter than what was read from it
}

func (f *frameReader) take(n int) []byte {
	if n < 0 || n > len(f.rest) {
		f.bad, f.rest = true, nil
		return nil
	}
	v := f.rest[:n:n]
	f.rest = f.rest[n:]
	return v
}

func (f *frameReader) uint16() uint16 {
	if v := f.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (f *frameReader) uint64() uint64 {
	if v := f.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (f *frameReader) bytes() []byte {
	v := f.take(4)
	if v == nil {
		return nil
	}
	return f.take(int(binary.BigEndian.Uint32(v)))
}

func (f *frameReader) text() string { return string(f.bytes()) }

// done refuses content that was too short, or goes on.
func (f *frameReader) done() error {
	if f.bad || len(f.rest) > 0 {
		return errCallFrame
	}
	return nil
}

// forwardedCall is all that the leader hears of a call besides who makes it.
type forwardedCall struct {
	target, accept, contentType, key, requestID, traceparent, tracestate string
	body                                                                 []byte
}

func (c *forwardedCall) texts() []*string {
	return []*string{&c.target, &c.accept, &c.contentType, &c.key, &c.requestID, &c.traceparent, &c.tracestate}
}

func (c *forwardedCall) append(b []byte, number uint64, slot uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint16(b, slot)
	for _, text := range c.texts() {
		b = appendField(b, *text)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(c.body))), c.body...)
}

func parseCall(content []byte) (c *forwardedCall, number uint64, slot uint16, err error) {
	f := &frameReader{rest: content}
	c = &forwardedCall{}
	number, slot = f.uint64(), f.uint16()
	for _, text := range c.texts() {
		*text = f.text()
	}
	c.body = f.bytes()
	return c, number, slot, f.done()
}

// callAnswer is what the leader answers: a status, the headers that are relayed,
// in their order, and the body.
type callAnswer struct {
	status int
	header [relayedCount]string
	body   []byte
}

func (a *callAnswer) append(b []byte, number uint64) []byte {
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint16(b, uint16(a.status))
	for _, v := range a.header {
		b = appendField(b, v)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(a.body))), a.body...)
}

func parseAnswer(content []byte) (a *callAnswer, number uint64, err error) {
	f := &frameReader{rest: content}
	a = &callAnswer{}
	number, a.status = f.uint64(), int(f.uint16())
	for i := range a.header {
		a.header[i] = f.text()
	}
	a.body = f.bytes()
	if err = f.done(); err == nil && a.status > statusNotTaken && (a.status < 200 || a.status > 599) {
		err = fmt.Errorf("%w: status %d", errCallFrame, a.status)
	}
	return a, number, err
}
