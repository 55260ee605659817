package proxy

import (
	"runtime"
	"runtime/debug"
)

// calmAfter is for how many looks, a second apart, nobody connects before memory is given back.
const calmAfter = 5

// calm gives memory back once a burst of connections is over. What handshakes leave
// behind is several times what a connection holds, and where nothing more happens
// nothing collects it: a proxy with thousands of idle connections would weigh
// for minutes, or for ever, what it weighed at its busiest.
type calm struct {
	last  uint64 // connections ever, at the last look
	quiet int    // looks since there was a new one
	owed  bool   // there was one since memory was given back
}

// look is called every second with the number of connections there have ever been,
// and says whether memory is to be given back now.
func (c *calm) look(conns uint64) bool {
	if conns != c.last {
		c.last, c.quiet, c.owed = conns, 0, true
		return false
	}
	c.quiet++
	if !c.owed || c.quiet < calmAfter {
		return false
	}
	c.owed = false
	return true
}

// giveBack collects twice: what lies in a sync.Pool survives once, and a stack that
// a handshake has grown shrinks by half.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}
