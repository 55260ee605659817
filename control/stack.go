package control

import "runtime"

// stackRoom is about what a call takes of its goroutine's stack, one that mints
// among them.
const stackRoom = 20 << 10

// deepen makes the room at once. A new goroutine's stack is small, and grows by
// being copied, with every frame on it looked at, at each doubling: a fifteenth of
// the time of a busy node went there. At the goroutine's beginning there is
// nothing to copy yet.
//
//go:noinline
func deepen() {
	var room [stackRoom]byte
	runtime.KeepAlive(&room) // or there would be no need for it
}
