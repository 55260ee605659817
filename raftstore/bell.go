package raftstore

import "sync"

// bell tells everybody who waits.
type bell struct {
	mu   sync.Mutex
	rung chan struct{} // guarded by mu; closed and replaced by tell
}

func newBell() *bell { return &bell{rung: make(chan struct{})} }

// changed returns a channel that the next tell closes.
func (b *bell) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung
}

func (b *bell) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.rung)
	b.rung = make(chan struct{})
}
