package proxy

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// greetings are the handshakes under way, the oldest first. When there are too
// many the oldest goes for the newest: were newcomers turned away, whoever opens
// connections and says nothing would keep all others out, whose handshakes take
// milliseconds.
type greetings struct {
	mu  sync.Mutex
	all []*greeting // guarded by mu
}

type greeting struct {
	raw     net.Conn
	dropped atomic.Bool
}

// begin takes a handshake in, when there are most of them in the place of the
// oldest.
func (g *greetings) begin(raw net.Conn, most int) *greeting {
	h := &greeting{raw: raw}
	g.mu.Lock()
	var oldest *greeting
	if len(g.all) >= most {
		oldest = g.shift()
	}
	g.all = append(g.all, h)
	g.mu.Unlock()
	oldest.drop()
	return h
}

// makeRoom drops the oldest handshake and reports whether there was one.
func (g *greetings) makeRoom() bool {
	g.mu.Lock()
	oldest := g.shift()
	g.mu.Unlock()
	oldest.drop()
	return oldest != nil
}

// shift takes the oldest out. Call with mu held.
func (g *greetings) shift() *greeting {
	if len(g.all) == 0 {
		return nil
	}
	oldest := g.all[0]
	g.all = slices.Delete(g.all, 0, 1)
	return oldest
}

// end takes a handshake out that is over.
func (g *greetings) end(h *greeting) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.all, h); i >= 0 {
		g.all = slices.Delete(g.all, i, i+1)
	}
}

func (g *greetings) len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.all)
}

// drop ends the connection; whoever is in its handshake sees that.
func (h *greeting) drop() {
	if h != nil {
		h.dropped.Store(true)
		_ = h.raw.Close() // nothing can be done about it
	}
}
