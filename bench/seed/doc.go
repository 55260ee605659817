// Package seed makes clusters that have lived for long: a million grants and ten
// million audit entries in the very files that a node writes, without the year it
// would have taken.
//
// Every entry is a command that a node could have proposed, with its time in it,
// and goes through approval's Apply and raftstore's state, records and snapshots
// (raftstore.Seeder). None of it is drawn up by hand, so what is measured on it is
// what a cluster of that age has:
//
//	plan ──► history: who asks, decides, fetches, returns, revokes, and when
//	              │ commands, in order of their time
//	              ▼
//	         approval.Apply ──► state.db, records, snapshot, end of the log
//
// A history is a function of its plan. The commands of one batch are applied in
// one transaction, as raft's are; one that needs what an earlier one came to (a
// decision names the hash of what was shown) waits for the next batch.
//
// It is for benchmarks and tests, and nothing in the binary imports it.
package seed
