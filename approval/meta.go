package approval

import "fmt"

// meta is the one record that every command reads and every change writes.
type meta struct {
	Cluster           string `cbor:"1,keyasint"`
	TrustDomain       string `cbor:"2,keyasint"`
	GrantTrustDomain  string `cbor:"3,keyasint"`
	Epoch             uint64 `cbor:"4,keyasint"`
	LastNow           Millis `cbor:"5,keyasint"`
	DirectoryRevision uint64 `cbor:"6,keyasint"`
	PolicyRevision    uint64 `cbor:"7,keyasint"`
	FeedRevision      uint64 `cbor:"8,keyasint"`
	AuditSize         uint64 `cbor:"9,keyasint"`
	Changes           uint64 `cbor:"10,keyasint"` // commands that changed the state
	TrustRevision     uint64 `cbor:"11,keyasint"` // of roots, issuers and API certificates
	Manifest          uint64 `cbor:"12,keyasint"` // sequence number of the newest manifest taken
	Removed           uint64 `cbor:"13,keyasint"` // nodes removed since that manifest
	Version           int    `cbor:"14,keyasint"` // of commands, that the cluster has agreed on

	// A node of version 1 knows neither, and has neither: empty, they are not written.
	EpochBegan Millis `cbor:"15,keyasint,omitempty"` // requests and grants with earlier ids have ended
	Lineage    string `cbor:"16,keyasint,omitempty"` // of the replicated log in which the epoch began
}

// version is that of commands which are accepted.
func (m meta) version() int { return max(m.Version, 1) }

// load reads the record at key; false when there is none.
func load[T any](r Reader, key []byte) (T, bool, error) {
	var v T
	data := r.Get(key)
	if data == nil {
		return v, false, nil
	}
	if err := decoder.Unmarshal(data, &v); err != nil {
		return v, false, storedAt(key, err)
	}
	return v, true, nil
}

func storedAt(key []byte, err error) error {
	return fmt.Errorf("approval: stored record at %q: %w", key, err)
}

// find is load for a record that ought to be there.
func find[T any](r Reader, key []byte, what, name string) (T, error) {
	v, ok, err := load[T](r, key)
	if err != nil {
		return v, err
	}
	if !ok {
		return v, &Error{Code: CodeNotFound, Detail: fmt.Sprintf("there is no %s %q", what, name)}
	}
	return v, nil
}

// every reads all records under prefix; it is for lists that are short by
// nature: members, issuers, persons, groups, the feed.
func every[T any](r Reader, prefix string) ([]T, error) {
	var (
		all []T
		bad error
	)
	r.Scan([]byte(prefix), nil, func(k, data []byte) bool {
		var v T
		if err := decoder.Unmarshal(data, &v); err != nil {
			bad = fmt.Errorf("approval: stored record at %q: %w", k, err)
			return false
		}
		all = append(all, v)
		return true
	})
	return all, bad
}
