package approval

// Reader is an ordered map of bytes, as it was at one moment.
type Reader interface {
	// Get returns the value at key, nil when there is none. The caller MUST NOT
	// change the slice, and MUST NOT keep it longer than the transaction.
	Get(key []byte) []byte
	// Scan MUST call fn with every key that starts with prefix and is not less
	// than from (nil: from the first), in ascending bytewise order, until fn
	// returns false. The slices live as long as Get's.
	Scan(prefix, from []byte, fn func(key, value []byte) bool)
}

// Tx is a Reader that may be written to. What it writes MUST become visible to
// others all at once, together with the Raft index, or not at all; and its own
// reads MUST see its own writes.
type Tx interface {
	Reader
	Put(key, value []byte)
	Delete(key []byte)
	// Append adds a record to those kept beside the state: the body of an audit
	// leaf, whose hash is in the state. Nothing here reads records back.
	Append(record []byte)
}
