package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// markFile stands beside the log and says how far it had come. It follows what has reached the disk, beside the writes
// and not in their way, and is itself left to the system to bring there: after a kill it says where the log stood
// [markDelay] before, after a power failure where it stood half a minute before, after a stop in order where it stands.
// It is never ahead of the log. A log that is behind it is not the one this node wrote last: an older copy, a page that
// rotted back, a file cut short.
const markFile = "log.mark"

const markDelay = 10 * time.Millisecond

// A mark is, all integers big-endian:
//
//	magic 8 | transaction of the bbolt file 8 | last entry 8 | term 8 | term of the vote 8 | sum of what is kept 4 | CRC-32C 4
//
// The transaction counts every write of raft.db, and of wal-meta.db every one but appends. The sum is over each key with
// its value: votes, terms, the lineage, and which segments there are.
const (
	markMagic = "hpmark\x00\x01"
	markSize  = len(markMagic) + 4*8 + 2*4

	voteKey = "LastVoteTerm" // where raft keeps the term of its last vote
)

// markState is what a mark says.
type markState struct {
	txid, last, term, vote uint64
	sum                    uint32
}

func (m markState) encode() []byte {
	b := []byte(markMagic)
	for _, n := range []uint64{m.txid, m.last, m.term, m.vote} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, m.sum)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func parseMark(b []byte) (m markState, ok bool) {
	if len(b) != markSize || string(b[:len(markMagic)]) != markMagic ||
		crc32.Checksum(b[:markSize-4], castagnoli()) != binary.BigEndian.Uint32(b[markSize-4:]) {
		return m, false
	}
	be, n := binary.BigEndian, b[len(markMagic):]
	return markState{be.Uint64(n), be.Uint64(n[8:]), be.Uint64(n[16:]), be.Uint64(n[24:]), be.Uint32(n[32:])}, true
}

// logMark is the mark of a log that is open.
type logMark struct {
	path  string
	order binary.ByteOrder // of the terms among what is kept

	left markState // by the run before
	had  bool      // there was a mark, and it was whole

	mu   sync.Mutex        // held from before the bbolt file changes until now says so
	now  markState         // guarded by mu
	kept map[string]uint32 // guarded by mu

	// From start to close.
	file    *os.File
	bolt    *os.File // whose transactions are counted
	pages   int64    // bytes of a page of it
	changes chan struct{}
	writing sync.WaitGroup // the goroutine that follows changes, which ends when the channel is closed
}

// readMark reads the mark in dir. A damaged one is as good as none: the log is not worse for it.
func readMark(dir string, order binary.ByteOrder) (*logMark, error) {
	m := &logMark{path: filepath.Join(dir, markFile), order: order, kept: make(map[string]uint32)}
	b, err := os.ReadFile(m.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m.left, m.had = parseMark(b)
	return m, nil
}

// lost refuses a log file that is missing or empty where there was one.
func (m *logMark) lost(path string) error {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && info.Size() > 0 || !m.had {
		return nil
	}
	return lostLog(path, m.path+" says that it was written to")
}

// lostLog says of a log that is gone what that means, and what to do.
func lostLog(path, why string) error {
	return fmt.Errorf("%w: %s is missing or empty and %s, so this node's votes and what it acknowledged are lost. %s",
		ErrWrongNode, path, why, anew)
}

// keep takes note of a value that is kept; the caller holds mu, or is alone.
func (m *logMark) keep(key string, value []byte) {
	b := binary.BigEndian.AppendUint64(nil, uint64(len(key)))
	sum := crc32.Checksum(append(append(b, key...), value...), castagnoli())
	m.now.sum ^= m.kept[key] ^ sum
	m.kept[key] = sum
	if len(value) != 8 {
		return
	}
	switch key {
	case termKey:
		m.now.term = m.order.Uint64(value)
	case voteKey:
		m.now.vote = m.order.Uint64(value)
	}
}

// check refuses a file that is behind the mark, once all that is kept in it was noted.
func (m *logMark) check(path string, txid uint64) error {
	m.now.txid = txid
	switch was := m.left; {
	case !m.had || was.txid < txid && was.term <= m.now.term && was.vote <= m.now.vote:
		return nil
	case was.txid > txid:
		return damagedFile(path, fmt.Errorf("it is older than what this node wrote last (%d writes, %s knows of %d)", txid, m.path, was.txid))
	case was.term > m.now.term || was.vote > m.now.vote || was.sum != m.now.sum:
		return damagedFile(path, fmt.Errorf("the votes in it are not those that %s knows of", m.path))
	}
	return nil
}

// checkLast refuses a log that ends before the mark.
func (m *logMark) checkLast(path string, last uint64) error {
	if m.had && m.left.txid == m.now.txid && last < m.left.last {
		return damagedFile(path, fmt.Errorf("it ends at entry %d, and %s knows of entry %d", last, m.path, m.left.last))
	}
	return nil
}

// start begins to mark what is written to a log whose transactions the bbolt file counts.
func (m *logMark) start(bolt string, last uint64) (err error) {
	if m.bolt, err = os.Open(bolt); err != nil {
		return err
	}
	meta, err := readBoltMeta(m.bolt)
	if err != nil {
		return fmt.Errorf("%s: %w", bolt, err)
	}
	m.pages, m.now.txid, m.now.last = meta.pageSize, meta.txid, last
	if m.file, err = os.OpenFile(m.path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := m.write(); err != nil {
		return err
	}
	if err := errors.Join(m.file.Truncate(int64(markSize)), m.file.Sync(), syncDir(filepath.Dir(m.path))); err != nil {
		return err
	}
	changes := make(chan struct{}, 1)
	m.changes = changes
	m.writing.Go(func() { m.follow(changes) })
	return nil
}

// follow writes the mark when something has changed. One that cannot be written stays behind the log and does no harm.
func (m *logMark) follow(changes <-chan struct{}) {
	for range changes {
		_ = m.write()
		time.Sleep(markDelay)
	}
}

// write brings the mark up to date. No two run at a time.
func (m *logMark) write() error {
	m.mu.Lock()
	now := m.now
	m.mu.Unlock()
	_, err := m.file.WriteAt(now.encode(), 0)
	return err
}

// commit runs fn, which writes a transaction of the bbolt file and says in now what it changed. All do so through here:
// of one that is under way, the file may show what is not on the disk yet.
func (m *logMark) commit(fn func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := fn(); err != nil {
		return err
	}
	if m.changes == nil {
		return nil // it is being opened
	}
	if err := m.count(); err != nil {
		return err
	}
	m.changed()
	return nil
}

// count looks up the newest transaction. The caller holds mu.
func (m *logMark) count() error {
	head := make([]byte, boltPageHeader+boltMetaSize)
	for i := range int64(2) {
		if _, err := m.bolt.ReadAt(head, i*m.pages); err != nil {
			return err
		}
		if meta, ok := parseBoltMeta(head); ok {
			m.now.txid = max(m.now.txid, meta.txid)
		}
	}
	return nil
}

// changed has now written, by and by.
func (m *logMark) changed() {
	select {
	case m.changes <- struct{}{}:
	default: // it is about to be
	}
}

// ends says where the log ends now.
func (m *logMark) ends(last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.last = last
	m.changed()
}

// close leaves the mark on the disk. Nothing MUST change any more.
func (m *logMark) close() (err error) {
	m.mu.Lock()
	changes := m.changes
	m.changes = nil // raft-wal may be changing segments while it is closed
	m.mu.Unlock()
	if changes != nil {
		close(changes)
		m.writing.Wait()
		err = errors.Join(m.write(), m.file.Sync())
	}
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
	}
	if m.bolt != nil {
		err = errors.Join(err, m.bolt.Close())
	}
	m.file, m.bolt = nil, nil
	return err
}
