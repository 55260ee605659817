// Package faults kills real control nodes at the worst of moments and looks whether anything was
// lost.
//
// Its tests (`make test-faults`) run three processes of the hallpass binary on loopback and a real
// disk, and a ledger of writers that keep what they were answered. A node is killed with SIGKILL at
// a named place in its own code, or at any moment, alone or with the others; it is started again
// and asked for everything that was acknowledged, out of its own state. Two more have their disks
// filled, and stopped for a second at a time, which are small ones that they mount where nobody else
// sees them: that takes root.
//
//	overlay ─► go build -overlay ─► hallpass with failpoints ─┬─ n1 ─┐
//	                                                          ├─ n2 ─┤◄── ledger of writers
//	        "place, n-th time, how long after" in a file ────►└─ n3 ─┘──► Check after each start
//
// The places are not in the source and not behind a build tag: [Overlay] writes them into copies of
// the files, which reach the compiler by `go build -overlay`, so that no binary that ships can have
// them. The same copies have smaller thresholds, so that what a node does once in hours (a
// snapshot, a new segment, a log that is cut) happens every second.
package faults
