package control

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// callQuiet is how long the leader may say nothing while calls wait before it
	// is asked whether it is there, and again before it is taken for gone.
	callQuiet = 2 * time.Second
	// callIdle is how long a stream without calls is kept.
	callIdle = time.Minute
	// notSpoken is for how long a node that does not know call streams is not
	// asked again.
	notSpoken = time.Minute
)

// errNoCalls is returned for a node that does not know call streams.
var errNoCalls = errors.New("it knows no call streams")

// errBroken is returned for a call that was sent, and whose answer did not come.
var errBroken = errors.New("the stream to the leader broke")

// callLinks are this node's call streams to others, made when they are needed.
type callLinks struct {
	dial func(ctx context.Context, id string) (net.Conn, error)

	mu     sync.Mutex
	links  map[string]*callLink // guarded by mu
	unable map[string]time.Time // guarded by mu; when a node answered that it knows none
	closed bool                 // guarded by mu
	group  sync.WaitGroup       // of the goroutines of all links, which end with their streams
}

func newCallLinks(dial func(ctx context.Context, id string) (net.Conn, error)) *callLinks {
	return &callLinks{dial: dial, links: map[string]*callLink{}, unable: map[string]time.Time{}}
}

// callLink is one stream. Its first user opens it.
type callLink struct {
	opened chan struct{} // closed once out or failed is set
	failed error         // why it could not be opened
	out    *frameWriter

	slots map[[sha256.Size]byte]uint16  // guarded by out.mu; where the leader keeps a chain
	held  [callSlots]*[sha256.Size]byte // guarded by out.mu
	turn  uint16                        // guarded by out.mu; the slot to be used next

	born  time.Time
	heard atomic.Int64 // when the leader said something, in ns after born: whoever sets the clock breaks no stream

	mu      sync.Mutex
	number  uint64                      // guarded by mu; of the call made last
	waiting map[uint64]chan *callAnswer // guarded by mu; nil once the stream has ended
	used    time.Time                   // guarded by mu; when a call was made last
}

// do hands a call to the node. The error wraps errNotSent when nothing was sent,
// and errNoCalls when the node takes no calls this way.
func (l *callLinks) do(ctx context.Context, id string, chain []byte, call *forwardedCall) (*callAnswer, error) {
	link, err := l.link(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	answers := make(chan *callAnswer, 1)
	number, ok := link.expect(answers)
	if !ok {
		return nil, fmt.Errorf("%w: %w", errNotSent, errBroken)
	}
	began, err := link.out.send(func(b []byte) []byte {
		slot, known := link.slot(sha256.Sum256(chain))
		if !known {
			b = appendFrame(b, frameChain, func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(b, slot), chain...) })
		}
		return appendFrame(b, frameCall, func(b []byte) []byte { return call.append(b, number, slot) })
	})
	if !began {
		link.forget(number)
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err != nil {
		_ = link.out.conn.Close() // the reader ends, and with it whoever waits
	}
	select {
	case a := <-answers:
		switch {
		case a == nil || a.status == statusBroken:
			return nil, errBroken
		case a.status == statusNotTaken:
			return nil, fmt.Errorf("%w: %q stops", errNotSent, id)
		}
		return a, nil
	case <-ctx.Done():
		link.forget(number)
		return nil, context.Cause(ctx)
	}
}

// slot returns where the leader keeps a chain, and whether it has it already.
// Call in send.
func (l *callLink) slot(key [sha256.Size]byte) (slot uint16, known bool) {
	if slot, known = l.slots[key]; known {
		return slot, true
	}
	slot = l.turn
	l.turn = (l.turn + 1) % callSlots
	if old := l.held[slot]; old != nil {
		delete(l.slots, *old)
	}
	l.held[slot], l.slots[key] = &key, slot
	return slot, false
}

// expect gives a call its number; false when the stream has ended.
func (l *callLink) expect(answers chan *callAnswer) (number uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == nil {
		return 0, false
	}
	if len(l.waiting) == 0 {
		l.heard.Store(int64(time.Since(l.born))) // it had nothing to say
	}
	l.number++
	l.waiting[l.number] = answers
	l.used = time.Now()
	return l.number, true
}

func (l *callLink) forget(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, number)
}

// link returns the stream to a node, opened.
func (l *callLinks) link(ctx context.Context, id string) (*callLink, error) {
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return nil, net.ErrClosed
	case time.Since(l.unable[id]) < notSpoken:
		l.mu.Unlock()
		return nil, errNoCalls
	}
	link := l.links[id]
	if link == nil {
		link = &callLink{opened: make(chan struct{}), slots: map[[sha256.Size]byte]uint16{}, waiting: map[uint64]chan *callAnswer{}, born: time.Now(), used: time.Now()}
		l.links[id] = link
		l.group.Go(func() { l.run(context.WithoutCancel(ctx), id, link) }) // others wait for it, too
	}
	l.mu.Unlock()
	select {
	case <-link.opened:
		return link, link.failed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run opens a stream and reads it to its end.
func (l *callLinks) run(ctx context.Context, id string, link *callLink) {
	conn, in, err := l.open(ctx, id)
	if err == nil {
		link.out = &frameWriter{conn: conn}
	}
	link.failed = err
	if err != nil { // gone before anybody hears of it: the next call dials anew
		l.remove(id, link, errors.Is(err, errNoCalls))
	}
	close(link.opened)
	if err != nil {
		return
	}
	over := make(chan struct{})
	l.group.Go(func() { link.watch(over) })
	_ = link.read(in) // however it ends, what waits is told
	close(over)
	_ = conn.Close()
	l.remove(id, link, false)
	link.mu.Lock()
	waiting := link.waiting
	link.waiting = nil
	link.mu.Unlock()
	for _, answers := range waiting {
		answers <- nil
	}
}

func (l *callLinks) open(ctx context.Context, id string) (net.Conn, *bufio.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, callQuiet)
	defer cancel()
	conn, err := l.dial(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return nil, nil, errors.Join(net.ErrClosed, conn.Close())
	}
	in := bufio.NewReaderSize(conn, 32<<10)
	magic := make([]byte, len(callMagic))
	err = conn.SetDeadline(time.Now().Add(callQuiet))
	if err == nil {
		_, err = io.WriteString(conn, callMagic)
	}
	if err == nil {
		_, err = io.ReadFull(in, magic)
	}
	if err == nil && string(magic) != callMagic {
		err = fmt.Errorf("it answers %q", magic)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w: %w", errNoCalls, err), conn.Close())
	}
	return conn, in, nil
}

func (l *callLinks) remove(id string, link *callLink, unable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.links[id] == link {
		delete(l.links, id)
	}
	if unable {
		l.unable[id] = time.Now()
	}
}

// read gives answers to those who wait for them, until the stream ends.
func (l *callLink) read(in io.Reader) error {
	for {
		kind, content, err := readFrame(in)
		if err != nil {
			return err
		}
		l.heard.Store(int64(time.Since(l.born)))
		switch kind {
		case framePong:
			continue
		case frameAnswer:
		default:
			return fmt.Errorf("%w: kind %d", errCallFrame, kind)
		}
		a, number, err := parseAnswer(content)
		if err != nil {
			return err
		}
		l.mu.Lock()
		answers := l.waiting[number]
		delete(l.waiting, number)
		l.mu.Unlock()
		if answers != nil { // else its caller has left
			answers <- a
		}
	}
}

// watch closes the stream when the leader says nothing more, or when nobody has
// called for long. A machine that lost its power closes no connection.
func (l *callLink) watch(over <-chan struct{}) {
	t := time.NewTicker(callQuiet / 2)
	defer t.Stop()
	for {
		select {
		case <-over:
			return
		case <-t.C:
		}
		l.mu.Lock()
		calls, idle := len(l.waiting), time.Since(l.used)
		l.mu.Unlock()
		quiet := time.Since(l.born) - time.Duration(l.heard.Load())
		switch {
		case calls == 0 && idle > callIdle, calls > 0 && quiet > 2*callQuiet:
			_ = l.out.conn.Close() // the reader ends
		case calls > 0 && quiet > callQuiet:
			if _, err := l.out.send(func(b []byte) []byte { return appendFrame(b, framePing, nothing) }); err != nil {
				_ = l.out.conn.Close()
			}
		}
	}
}

// close ends all streams.
func (l *callLinks) close() {
	l.mu.Lock()
	l.closed = true
	links := make([]*callLink, 0, len(l.links))
	for _, link := range l.links {
		links = append(links, link)
	}
	l.mu.Unlock()
	for _, link := range links {
		<-link.opened
		if link.out != nil {
			_ = link.out.conn.Close()
		}
	}
	l.group.Wait()
}
