// Package sim runs a whole control plane for hours in seconds, breaks it all the while, and checks that nothing was lost,
// told twice, or told wrong.
//
// A run is one seed in one bubble of testing/synctest: three control nodes as they ship (hashicorp/raft, raftstore, the
// approval state machine, the API's handlers, the issuers), ten persons with the client that ships, and a network, disks
// and clocks made here, which do as the seed says.
//
//	persons ──TLS──► simulated streams ──► control ──► raftstore ──► raft ──► simulated messages ──► the other nodes
//	   │                                     │ Now            │
//	   ▼                                     ▼                ▼ LogStore, Transport, Streams
//	 book: every call and answer         simulated clock   simulated disk
//
// # What is real and what is not
//
// Persons speak real TLS and HTTP/2 with real certificates, over byte streams in memory: with them a quarter of a virtual
// hour takes about three seconds of a processor, and of that TLS a tenth, so there was no reason to call the handlers
// directly and leave out who is asking. Streams between nodes carry real HTTP/2 without the store's TLS, whose pinned keys
// have tests of their own. Raft's messages go through a raft.Transport of this package, since over one byte stream none
// could be lost, doubled or late. The log and the votes are in memory behind a model of a disk that syncs each write; the
// state file and the snapshots are files, of which a crash leaves what it likes of the first.
//
// # What goes wrong
//
// The seed fixes a schedule of faults before the run begins, and what each person chooses at each step: see schedule.go
// for the kinds. The same seed gives the same schedule and the same choices; in which order goroutines run, and so which
// request somebody happens to pick, no seed fixes. Nor is it fixed which single messages a storm loses.
//
// Time jumps on one node at a time, for of two wrong clocks in three nodes no cluster can tell.
//
// # What is checked
//
// While it runs: a state that is ahead of the time, a request or grant told to have ended early or late, a list of
// revocations confirmed for the future, an audit log told in two ways, a server error, a node that halts without a full
// disk, two states at one index.
//
// In the end, once everything is mended: all nodes come to one state; approval's own invariants and its whole audit log
// hold on each; every root and entry that somebody was told is still there; every certificate that somebody holds was
// committed byte for byte, ends in time, and shares its serial with none; no list of revocations lacked what had been
// acknowledged before the time it claimed.
//
// After that, outside of the bubble, porcupine looks for an order of all that was told about each request in which each
// answer is right (see model.go). A call without an answer may have had its effect at any time from its beginning on, or
// never. What a clock could say in two ways, being right, is left open.
//
// # Running it
//
//	make sim                  fifty virtual hours, two hundred seeds and some
//	make sim HOURS=2          fewer
//	make sim SEED=17          one seed, as printed by a run that failed
//
// A seed that fails prints its history. The runs together fail, too, when something never happened: without elections,
// crashes, partitions, snapshot installs or changes of the membership they would say little.
package sim
