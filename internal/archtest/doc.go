// Package archtest keeps the import walls of docs/architecture.md standing.
//
// Rooms are only worth their walls: that the proxy decides from the certificate alone is true
// because nothing it links could ask anybody else; that the state machine is the same function
// on every node is true because it can reach no clock, no file and no network. So the walls are
// a test, over what `go list -deps` says is linked, through every level of imports.
//
//	grant ◄── policy ◄── approval ◄── approval/api ◄─┐
//	  ▲  ◄── audit ◄───────┘                         ├── control ◄── cmd/hallpass
//	  ▲  ◄── ca ◄──────────────── raftstore ◄────────┘                │
//	  └───── proxy ◄──────────────────────────────────────────────────┘
//
// It holds three kinds of rule: which of our packages a package may import (a table; a package
// that is not in the table fails, so that a new room states its walls), what must never be
// reached at any depth, and, for the pure packages, which standard packages and which functions
// of package time they must not name.
package archtest
