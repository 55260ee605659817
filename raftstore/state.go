package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// The state file has two buckets: what the Machine wrote, and what that is and where in the log it stands.
const (
	bucketState = "state"
	bucketMeta  = "meta"
	keyPosition = "position"
	keyContent  = "content"

	// A read transaction holds the memory map; growing the map waits for it. With this much reserved address space a
	// snapshot being written never stops Apply before the state is this large.
	stateMapSize = 256 << 20

	lockTimeout = 2 * time.Second
)

// position is where in the log a state stands: the index and term of the last entry in it. The zero position is the
// state before any entry.
type position struct{ index, term uint64 }

// state is the bbolt file with the Machine's state. It is a cache of snapshot + log, never synced while it runs.
type state struct {
	path    string
	maxSize int // of the file in bytes; 0 is no limit

	mu sync.RWMutex // held for reading while db is in use, for writing while it is exchanged
	db *bbolt.DB    // guarded by mu; nil once closed
}

func openState(path string) (*state, error) {
	s := &state{path: path}
	db, err := openStateFile(path, 0)
	if err != nil {
		return nil, err
	}
	s.db = db
	return s, nil
}

func openStateFile(path string, maxSize int) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         lockTimeout,
		NoSync:          true,
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: stateMapSize,
		MaxSize:         maxSize,
	})
	if err != nil {
		return nil, fmt.Errorf("open state file: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketState, bucketMeta} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare state file: %w", err), db.Close())
	}
	return db, nil
}

// use runs fn with the open file, which nobody exchanges meanwhile.
func (s *state) use(fn func(db *bbolt.DB) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.db == nil {
		return ErrClosed
	}
	return fn(s.db)
}

func (s *state) view(fn func(t *boltTx, at position) error) error {
	return s.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			at, err := readPosition(tx)
			if err != nil {
				return err
			}
			t, err := newBoltTx(tx)
			if err != nil {
				return err
			}
			return fn(t, at)
		})
	})
}

// read is view for a Machine's reader, to whom the content is nothing.
func (s *state) read(fn func(r Reader, at position) error) error {
	return s.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			at, err := readPosition(tx)
			if err != nil {
				return err
			}
			return fn(newBoltReader(tx), at)
		})
	})
}

// update runs fn in a transaction and writes where the state then stands: fn returns the position it has reached.
func (s *state) update(fn func(t *boltTx, at position) (position, error)) (reached position, err error) {
	err = s.use(func(db *bbolt.DB) error {
		return db.Update(func(tx *bbolt.Tx) error {
			at, err := readPosition(tx)
			if err != nil {
				return err
			}
			t, err := newBoltTx(tx)
			if err != nil {
				return err
			}
			if reached, err = fn(t, at); err != nil {
				return err
			}
			if err := t.flush(); err != nil {
				return fmt.Errorf("write state: %w", err)
			}
			if reached == at && !t.changed {
				return nil
			}
			return errors.Join(writePosition(tx, reached), writeContent(tx, t.content))
		})
	})
	return reached, err
}

func (s *state) position() (at position, err error) {
	err = s.view(func(_ *boltTx, p position) error { at = p; return nil })
	return at, err
}

// content returns what the state holds and where it stands.
func (s *state) content() (at position, c content, err error) {
	err = s.view(func(t *boltTx, p position) error {
		at, c = p, t.content
		return nil
	})
	return at, c, err
}

// replace closes the current file, puts the file at path in its place and opens that. Readers see the one or the other.
func (s *state) replace(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return ErrClosed
	}
	err := s.db.Close() // waits for the transactions of a snapshot being written
	s.db = nil
	if err != nil {
		return fmt.Errorf("close state file: %w", err)
	}
	if err := os.Rename(path, s.path); err != nil {
		return fmt.Errorf("replace state file: %w", err)
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	s.db, err = openStateFile(s.path, s.maxSize)
	return err
}

// close closes the file; with flush its content has reached the disk when close returns nil.
func (s *state) close(flush bool) (at position, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return at, ErrClosed
	}
	db := s.db
	s.db = nil
	err = db.View(func(tx *bbolt.Tx) (err error) {
		at, err = readPosition(tx)
		return err
	})
	if err == nil && flush {
		// With the list of free pages in the file the next start need not read all of it to make one.
		db.NoFreelistSync = false
		err = errors.Join(db.Update(func(*bbolt.Tx) error { return nil }), db.Sync())
	}
	return at, errors.Join(err, db.Close())
}

func readPosition(tx *bbolt.Tx) (position, error) {
	v := tx.Bucket([]byte(bucketMeta)).Get([]byte(keyPosition))
	switch len(v) {
	case 0:
		return position{}, nil
	case 16:
		return position{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])}, nil
	}
	return position{}, fmt.Errorf("state file: a position of %d bytes", len(v))
}

func writePosition(tx *bbolt.Tx, at position) error {
	v := binary.BigEndian.AppendUint64(nil, at.index)
	v = binary.BigEndian.AppendUint64(v, at.term)
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyPosition), v)
}

func readContent(tx *bbolt.Tx) (content, error) {
	v := tx.Bucket([]byte(bucketMeta)).Get([]byte(keyContent))
	switch len(v) {
	case 0:
		return content{}, nil
	case contentSize:
		return decodeContent(v), nil
	}
	return content{}, fmt.Errorf("state file: a content of %d bytes", len(v))
}

func writeContent(tx *bbolt.Tx, c content) error {
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyContent), c.encode())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
