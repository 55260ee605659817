// Package demo runs a whole Hallpass on this machine and walks through what it
// is for.
//
// Every part is an operating system process of its own: three control nodes, a
// proxy, and an upstream that knows nothing of Hallpass. They are the same
// binary with the same configuration files and the same mutual TLS as anywhere
// else; nothing is simulated and nothing is shortened except the lifetimes that
// the walk asks for. What a person would type is run as a person would run it,
// through the command line.
//
//	         ┌──── n1 ────┐
//	alice ──►│  control   │◄── raft ──► n2, n3
//	bob   ──►└────────────┘
//	   │ grant certificate
//	   ▼
//	 proxy(payments) ──► upstream
//
// Run walks and leaves nothing behind; Dev starts the same and leaves it
// running until it is interrupted. The roots are made for the occasion, marked
// as development roots, and every listener is on loopback.
package demo
