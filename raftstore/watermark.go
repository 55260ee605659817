package raftstore

import (
	"context"
	"sync"
)

// watermark is the index applied here; it only rises, and wakes who waits for it.
type watermark struct {
	mu     sync.Mutex
	index  uint64        // guarded by mu
	raised chan struct{} // guarded by mu; closed and replaced when index rises
}

func newWatermark() *watermark { return &watermark{raised: make(chan struct{})} }

func (w *watermark) set(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if index <= w.index {
		return
	}
	w.index = index
	close(w.raised)
	w.raised = make(chan struct{})
}

func (w *watermark) get() (index uint64, raised <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index, w.raised
}

// wait returns the index once it is above the given one, or with an error the index as it is.
func (w *watermark) wait(ctx context.Context, above uint64, closed <-chan struct{}) (uint64, error) {
	for {
		index, raised := w.get()
		if index > above {
			return index, nil
		}
		select {
		case <-raised:
		case <-ctx.Done():
			return index, context.Cause(ctx)
		case <-closed:
			return index, ErrClosed
		}
	}
}
