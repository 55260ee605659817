package raftstore

// Reader reads one consistent state. Slices it hands out, and slices it hands to fn, belong to the store: they MUST NOT
// be written to, nor kept after the function that was given the Reader has returned.
type Reader interface {
	// Get returns the value of key, or nil when there is none. The value of a present key is never nil.
	Get(key []byte) []byte
	// Scan calls fn with each pair whose key starts with prefix and is not below from, in ascending byte order of keys,
	// until fn returns false. A nil from starts at the prefix; an empty prefix is every key.
	Scan(prefix, from []byte, fn func(k, v []byte) bool)
}

// Tx reads and writes the state one command sees. Keys are 1 to 32,768 bytes. A Scan sees what was written before each
// step, also by its own fn.
//
// Append adds a record to the records, a list beside the state that only grows: the first has number 0. What is appended
// is part of the command's outcome, the same on every node, but a Machine cannot read it back: a node that was sent a
// snapshot has the state at once and the records before it later. [Store.ReadRecords] reads them.
type Tx interface {
	Reader
	Put(key, value []byte)
	Delete(key []byte)
	Append(record []byte)
}

// Machine is what every node runs on the same commands in the same order.
//
// Apply MUST be deterministic: the same state, index and data give the same writes and the same result on every node
// and on every replay. It MUST NOT look at a clock, a random source, the environment or memory of its own, MUST NOT
// panic, and MUST NOT keep tx, data or anything read from tx, in the result either. A refused command is a result, not a
// failure. The result goes to whoever proposed the command at this node, and to nobody else.
//
// CheckRecords says whether records that came from another node, or were on the disk, are the ones that Apply appended:
// what it needs for that MUST be in the state. They begin at a multiple of RecordChunk and go to the end of that chunk, or
// to the last there is as of r. It MUST return nil for no others, whatever they are.
type Machine interface {
	Apply(tx Tx, index uint64, data []byte) (result any)
	CheckRecords(r Reader, first uint64, records [][]byte) error
}

// RecordChunk is how many records are checked together.
const RecordChunk = 256
