package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"time"
)

// garbageRoom is how much garbage a proxy lets lie at least before it is collected. A
// few megabytes live on its heap; at the usual factor of two, a few dozen new
// connections would fill it, and a busy proxy would collect a hundred times a second.
const garbageRoom = 32 << 20

// leaveRoom keeps the collector's factor such that there is that room, and never
// below the usual one, until ctx ends. A memory limit (GOMEMLIMIT) goes before it, and
// whoever starts the proxy with a GOGC of their own keeps that.
func (a *app) leaveRoom(ctx context.Context) {
	if slices.ContainsFunc(a.environ(), func(kv string) bool { return strings.HasPrefix(kv, "GOGC=") }) {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	for was := 0; ; {
		metrics.Read(live)
		all := uint64(0)
		for _, s := range live {
			all += s.Value.Uint64()
		}
		// Each change stops the world for a moment: not for little.
		if now := gcFactor(all); now > was+was/8 || now < was-was/8 {
			debug.SetGCPercent(now)
			was = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// gcFactor is what to set for so many bytes that live.
func gcFactor(live uint64) int {
	const usual, most = 100, 3200 // the heap counts as a megabyte at least, whatever it is at the start
	return int(min(max(garbageRoom*100/max(live, 1), usual), most))
}
