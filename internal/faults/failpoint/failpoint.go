// Package failpoint kills the process it is in, at a place in the code that a test names.
//
// No source file calls it. The calls are put in by the overlay of package faults, for a binary that
// is built for a test and thrown away; internal/archtest sees to it that nothing imports this.
package failpoint

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Variable names the file that says where to die: an [Order]. It is looked at whenever a place is
// come by, so that a test can write it while the process runs.
const Variable = "FAILPOINT_FILE"

// Order is what the file says.
type Order struct {
	Place string        // as Hit names it
	Nth   int           // of the times that the place is come by, from 1
	After time.Duration // how long the process goes on from there
}

// String is how an Order stands in the file.
func (o Order) String() string { return fmt.Sprintf("%q %d %d\n", o.Place, o.Nth, o.After) }

// Taken is the file's name once its order is being carried out.
func Taken(path string) string { return path + ".taken" }

var come counter //nolint:gochecknoglobals // a failpoint is a line in somebody else's function: there is nothing to pass it by

// counter counts how often the place of an order was come by.
type counter struct {
	mu    sync.Mutex
	order Order // guarded by mu; what is counted for
	times int   // guarded by mu
}

func (c *counter) reached(o Order) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.order != o {
		c.order, c.times = o, 0
	}
	c.times++
	return c.times == o.Nth
}

// Hit comes by a place.
func Hit(place string) {
	path := os.Getenv(Variable)
	if path == "" {
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return // no order
	}
	var o Order
	if _, err := fmt.Sscanf(string(text), "%q %d %d\n", &o.Place, &o.Nth, &o.After); err != nil || o.Place != place || !come.reached(o) {
		return
	}
	if err := os.Rename(path, Taken(path)); err != nil {
		panic(err)
	}
	if o.After == 0 {
		die()
	}
	go func() {
		time.Sleep(o.After)
		die()
	}()
}

// die ends the process as a power cut ends it, as far as a process can tell: nothing is flushed, and
// nothing runs any more.
func die() {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}
