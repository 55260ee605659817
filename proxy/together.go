package proxy

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// togetherFor is for how long what is written waits for more at the longest, where that does not come.
const togetherFor = 10 * time.Millisecond

// together has the head of an HTTP/2 answer wait for its body, where that is at hand:
// net/http writes each by itself, and a write takes more than most else that is done
// with a small answer.
//
// It waits for nothing that does not come: each part of an answer is written behind
// the one before it, so behind what await was told of there is another write; and
// where there is none, because the stream was reset meanwhile, the time is short.
type together struct {
	to    net.Conn
	await atomic.Bool // the next write waits for the one behind it

	mu    sync.Mutex // owns what follows
	text  []byte     // waits
	timer *time.Timer
	timed bool // the timer runs
	err   error
}

// mostTogether is how much waits at the most: a head, and a small body.
const mostTogether = 8 << 10

// awaitMore has the next write wait for the one behind it.
func (w *together) awaitMore() { w.await.Store(true) }

func (w *together) write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if w.await.Load() && w.await.Swap(false) && len(w.text)+len(p) <= mostTogether {
		w.text = append(w.text, p...)
		w.time()
		return len(p), nil
	}
	if len(w.text) == 0 {
		return w.to.Write(p)
	}
	w.text = append(w.text, p...)
	if w.send(); w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// send writes what waits. An error stays: some of it may have gone out.
func (w *together) send() {
	_, w.err = w.to.Write(w.text)
	if w.text = w.text[:0]; cap(w.text) > mostTogether {
		w.text = nil
	}
}

// time has the timer run. It is not stopped when the rest comes: it would have to be
// started for each answer, and each time wake who sleeps until a later one.
func (w *together) time() {
	switch {
	case w.timed:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(togetherFor, w.late)
	default:
		w.timer.Reset(togetherFor)
	}
	w.timed = true
}

// late writes what has waited long enough.
func (w *together) late() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timed = false
	if w.err == nil && len(w.text) > 0 {
		w.send()
	}
}
