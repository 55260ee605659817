package sim

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

var (
	errFull    = errors.New("sim: no space left on device")
	errCrashed = errors.New("sim: the process has crashed")
)

// disk keeps a node's log and votes through its crashes. A write is synced before it returns, as raftstore demands of a
// LogStore: it takes its time, then it is there, all of it. A crash finds at most one write under way, raft having one
// writer and another that compacts, and each of these lands whole or not at all.
type disk struct {
	mu    sync.Mutex
	rng   *rand.Rand        // guarded by mu
	store *raft.InmemStore  // guarded by mu
	lag   time.Duration     // guarded by mu; of each write, besides the usual
	full  bool              // guarded by mu; writes fail
	life  *diskLife         // guarded by mu; the process that has it open
	begun chan struct{}     // guarded by mu; closed when the next write begins, nil when nobody waits for that
	tries func(landed bool) // told of each write that a crash found under way
}

// usualWrite is how long a write takes at least.
const usualWrite = 500 * time.Microsecond

// nextWrite is closed when the next write begins.
func (d *disk) nextWrite() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun == nil {
		d.begun = make(chan struct{})
	}
	return d.begun
}

func newDisk(seed uint64, id string, tries func(landed bool)) *disk {
	return &disk{rng: newRand(seed, "disk "+id), store: raft.NewInmemStore(), tries: tries}
}

// open gives the disk to a new process.
func (d *disk) open() *diskLife {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.life = &diskLife{disk: d, over: make(chan struct{})}
	return d.life
}

// crash ends the process that has the disk open: nothing of it is written from here on.
func (d *disk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life != nil {
		close(d.life.over)
		d.life = nil
	}
}

// wipe puts an empty disk in its place.
func (d *disk) wipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store = raft.NewInmemStore()
}

// ail sets how it fares.
func (d *disk) ail(lag time.Duration, full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lag, d.full = lag, full
}

// diskLife is the disk as one process has it open: a raftstore.LogStore.
type diskLife struct {
	disk *disk
	over chan struct{}
}

// write does fn when the time that a write takes is over.
func (l *diskLife) write(fn func(*raft.InmemStore) error) error {
	d := l.disk
	d.mu.Lock()
	if d.life != l {
		d.mu.Unlock()
		return errCrashed
	}
	if d.full {
		d.mu.Unlock()
		return errFull
	}
	takes := usualWrite + time.Duration(d.rng.Int64N(int64(usualWrite+d.lag)))
	if d.begun != nil {
		close(d.begun)
		d.begun = nil
	}
	d.mu.Unlock()

	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.over:
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life == l {
		return fn(d.store)
	}
	landed := d.rng.IntN(2) == 0
	d.tries(landed)
	if landed {
		_ = fn(d.store) // nobody is left to be told
	}
	return errCrashed
}

func (l *diskLife) read() *raft.InmemStore {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	return l.disk.store
}

// FirstIndex implements raft.LogStore.
func (l *diskLife) FirstIndex() (uint64, error) { return l.read().FirstIndex() }

// LastIndex implements raft.LogStore.
func (l *diskLife) LastIndex() (uint64, error) { return l.read().LastIndex() }

// GetLog implements raft.LogStore.
func (l *diskLife) GetLog(index uint64, entry *raft.Log) error { return l.read().GetLog(index, entry) }

// StoreLog implements raft.LogStore.
func (l *diskLife) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (l *diskLife) StoreLogs(entries []*raft.Log) error {
	own := make([]*raft.Log, len(entries))
	for i, e := range entries {
		entry := *e
		own[i] = &entry
	}
	return l.write(func(s *raft.InmemStore) error { return s.StoreLogs(own) })
}

// DeleteRange implements raft.LogStore.
func (l *diskLife) DeleteRange(from, to uint64) error {
	return l.write(func(s *raft.InmemStore) error { return s.DeleteRange(from, to) })
}

// Set implements raft.StableStore.
func (l *diskLife) Set(key, value []byte) error {
	return l.write(func(s *raft.InmemStore) error { return s.Set(key, value) })
}

// Get implements raft.StableStore.
func (l *diskLife) Get(key []byte) ([]byte, error) { return l.read().Get(key) }

// SetUint64 implements raft.StableStore.
func (l *diskLife) SetUint64(key []byte, value uint64) error {
	return l.write(func(s *raft.InmemStore) error { return s.SetUint64(key, value) })
}

// GetUint64 implements raft.StableStore.
func (l *diskLife) GetUint64(key []byte) (uint64, error) { return l.read().GetUint64(key) }

// Close implements raftstore.LogStore.
func (l *diskLife) Close() error { return nil }
