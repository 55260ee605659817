package proxy

import (
	"sync"
	"time"
)

// partingTime bounds how long a cut connection has left for its protocol's last word. With lookEvery it stays under the
// second that a connection may outlive its certificate by.
const partingTime = 500 * time.Millisecond

// partings is what is to be done between the decision to cut a connection and the end of its socket: the last word of a
// protocol that has one. Whoever registers MUST carry nothing more for the client from the moment when it is called.
type partings struct {
	mu   sync.Mutex // owns what follows
	all  map[int]func(why string)
	next int
}

// beforeCut has f called when the connection is cut, in a goroutine of its own, until undo is called.
func (c *conn) beforeCut(f func(why string)) (undo func()) {
	for c.within != nil { // it is the carrier that is cut, with its streams
		c = c.within
	}
	p := &c.partings
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = make(map[int]func(string))
	}
	id := p.next
	p.next++
	p.all[id] = f
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.all, id)
	}
}

// run calls what is registered and then the function then, at the latest after partingTime, and without waiting for
// it. It says whether there was anything; if not, nothing was called.
func (p *partings) run(why string, then func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) == 0 {
		return false
	}
	var wg sync.WaitGroup
	for _, f := range p.all {
		wg.Go(func() { f(why) })
	}
	timer := time.AfterFunc(partingTime, then)
	go func() {
		wg.Wait()
		if timer.Stop() {
			then()
		}
	}()
	return true
}
