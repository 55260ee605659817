// Package loopback finds addresses for processes that are stopped and started
// again on the same one: the demo's nodes, and those of the tests.
//
// A port that nobody listens on is anybody's: while a node is down, the next
// "127.0.0.1:0" of any process may be given its port, and the node cannot come
// back. So a port found here is kept by a socket that is bound to it and never
// listens. The kernel then gives it to nobody who asks for any port, and lets
// whoever names it listen, as long as that socket has SO_REUSEADDR, which the
// listeners of Go, nginx and haproxy have.
package loopback
