package main

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// forced counts collections that somebody asked for, as returning memory does.
func forced() uint32 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.NumForcedGC
}

// TestIdleNodeGivesMemoryBack: memory is returned while little goes on, and a busy node is left alone, since each time
// costs a collection.
func TestIdleNodeGivesMemoryBack(t *testing.T) {
	const every = 200 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	busy, rest := context.WithCancel(ctx)
	group.Go(func() {
		for busy.Err() == nil {
			runtime.KeepAlive(make([]byte, idleAllocs/4))
			time.Sleep(every / 100)
		}
	})
	time.Sleep(every)
	before := forced()
	group.Go(func() { giveBack(ctx, every) })
	defer group.Wait()
	defer stop()
	time.Sleep(4 * every)
	if n := forced() - before; n > 1 { // on a machine that stands still for a moment, one check finds nothing going on
		t.Errorf("a busy node was stopped %d times to give memory back", n)
	}
	rest()
	before = forced()
	for begin := time.Now(); forced() == before; time.Sleep(every / 10) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("an idle node gives nothing back")
		}
	}
}
