package proxy

// deepStack is as much stack as a handshake or a request comes to need: with it a
// stack has 16 KB, and without it comes there in three steps.
const deepStack = 9 << 10

// growStack has a new goroutine's stack grow once, while nothing is on it. It would
// else double again and again in the depth of a handshake, and each time every
// frame of it is looked up and moved: a twentieth of a connection's time, and as
// much of an HTTP/2 request's.
//
//go:noinline
func growStack() {
	var room [deepStack]byte
	touch(&room)
}

//go:noinline
func touch(room *[deepStack]byte) { room[0] = 1 }
