package raftstore

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"
	"sort"
)

// BackupCheck is what the host of a backup's state knows about it.
type BackupCheck struct {
	// Keep says which pairs About and CheckRecords need; they are held in memory.
	Keep func(key []byte) bool
	// About refuses a description that is not the state's.
	About func(r Reader, about []byte) error
	// CheckRecords is the Machine's.
	CheckRecords func(r Reader, first uint64, records [][]byte) error
}

// backupSink takes in what a backup holds, before all of it has been checked.
type backupSink struct {
	head    func(BackupHead) error                     // or nil
	state   io.Writer                                  // the snapshot, or nil
	kept    func(BackupHead, Reader) error             // is given the pairs of Keep once the state was checked, or nil
	records func(first uint64, records [][]byte) error // or nil
}

// CheckBackup reads a backup to its end and returns what it says of itself, once all of that has turned out to be true. An
// error that wraps ErrDamagedBackup says where the first damage is.
func CheckBackup(r io.Reader, check BackupCheck) (BackupHead, error) {
	return readBackup(r, check, backupSink{})
}

func readBackup(r io.Reader, check BackupCheck, sink backupSink) (head BackupHead, err error) {
	b := newBackupReader(r)
	if head, err = b.head(); err != nil {
		return head, err
	}
	if sink.head != nil {
		if err := sink.head(head); err != nil {
			return head, err
		}
	}
	kept, info, err := b.state(check.Keep, sink.state)
	if err != nil {
		return head, err
	}
	if err := head.describes(info, kept, check.About); err != nil {
		return head, fmt.Errorf("%w: %w", ErrDamagedBackup, err)
	}
	if sink.kept != nil {
		if err := sink.kept(head, kept); err != nil {
			return head, err
		}
	}
	if err := b.records(head, kept, check.CheckRecords, sink.records); err != nil {
		return head, err
	}
	return head, b.end()
}

// describes checks what a head says against the state that it says it of.
func (h BackupHead) describes(info snapshotInfo, r Reader, about func(Reader, []byte) error) error {
	hash := info.content.hash()
	switch {
	case info.at != position{h.Index, h.Term}:
		return fmt.Errorf("the state stands at index %d of term %d, and the head says %d of %d", info.at.index, info.at.term, h.Index, h.Term)
	case h.StateHash != hex.EncodeToString(hash[:]):
		return errors.New("the state is not the one whose hash the head gives")
	case h.Records != info.content.records:
		return fmt.Errorf("the state counts %d records, and the head %d", info.content.records, h.Records)
	}
	if about == nil {
		return nil
	}
	return about(r, h.About)
}

// backupReader reads frames, and knows where it is.
type backupReader struct {
	r       *bufio.Reader
	sum     hash.Hash
	offset  uint64
	kind    byte   // of the frame at hand
	payload []byte // of the frame at hand
	began   uint64 // where it begins
	before  []byte // the sum of all before it
	rest    []byte // of the payload, that the snapshot's reader has not had yet
	failed  error  // what the snapshot's reader was told, which calls every error an end
}

func newBackupReader(r io.Reader) *backupReader {
	return &backupReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
}

func (b *backupReader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrDamagedBackup, b.began, fmt.Sprintf(format, args...))
}

func (b *backupReader) read(p []byte) error {
	n, err := io.ReadFull(b.r, p)
	_, _ = b.sum.Write(p[:n]) // a hash's Write never fails
	b.offset += uint64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends at byte %d, before its end: the copy was cut short", ErrDamagedBackup, b.offset)
	}
	return err
}

// next reads a frame.
func (b *backupReader) next() error {
	b.began, b.before = b.offset, b.sum.Sum(nil)
	intro := make([]byte, 5)
	if err := b.read(intro); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(intro[1:])
	if size > maxFrame {
		return b.damaged("no frame has %d bytes", size)
	}
	var err error
	if b.payload, err = readInto(b.payload, readerFunc(b.read), int(size)); err != nil {
		return err
	}
	tail := make([]byte, crc32.Size)
	if err := b.read(tail); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(tail) != backupCRC(b.began, intro, b.payload) {
		return b.damaged("a checksum does not match, of the %d bytes from there on", len(b.payload)+9)
	}
	b.kind = intro[0]
	return nil
}

// readerFunc is a reader that fills all it is given.
type readerFunc func(p []byte) error

func (f readerFunc) Read(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *backupReader) head() (head BackupHead, err error) {
	magic := make([]byte, len(backupMagic))
	if err := b.read(magic); err != nil {
		return head, err
	}
	if string(magic) != backupMagic {
		return head, b.damaged("it does not begin as a snapshot of this version")
	}
	if err := b.next(); err != nil {
		return head, err
	}
	if b.kind != frameHead || len(b.payload) > maxAbout {
		return head, b.damaged("there is no head")
	}
	if err := json.Unmarshal(b.payload, &head); err != nil {
		return head, b.damaged("the head cannot be read: %v", err)
	}
	if head.Format != BackupFormat {
		return head, b.damaged("it is of format %d, and this program reads %d", head.Format, BackupFormat)
	}
	if _, err := lineageFrom(head.Lineage); err != nil {
		return head, b.damaged("%v", err)
	}
	return head, b.next()
}

// Read is the snapshot in the frames of the state.
func (b *backupReader) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	if len(b.rest) == 0 {
		if b.kind != frameState {
			return 0, io.EOF
		}
		if b.rest = b.payload; len(b.rest) == 0 {
			b.failed = b.damaged("a piece of the state is empty")
			return 0, b.failed
		}
	}
	n := copy(p, b.rest)
	if b.rest = b.rest[n:]; len(b.rest) == 0 {
		b.failed = b.next()
	}
	return n, nil
}

// state reads the snapshot and what is to be kept of it; the frame after it is at hand then.
func (b *backupReader) state(keep func([]byte) bool, to io.Writer) (kept *pairList, info snapshotInfo, err error) {
	began := b.began
	kept = &pairList{}
	var sum pairSum
	var from io.Reader = b
	if to != nil {
		from = io.TeeReader(b, to)
	}
	info, err = readSnapshot(from, func(k, v []byte) error {
		sum.add(k, v)
		if keep != nil && keep(k) {
			kept.add(k, v)
		}
		return nil
	})
	switch {
	case b.failed != nil:
		return nil, info, b.failed
	case errors.Is(err, ErrDamagedSnapshot):
		return nil, info, fmt.Errorf("%w: in the state, which begins at byte %d: %w", ErrDamagedBackup, began, err)
	case err == nil && sum != info.content.sum:
		return nil, info, fmt.Errorf("%w: in the state, which begins at byte %d: it is not the one it names", ErrDamagedBackup, began)
	}
	return kept, info, err
}

// records reads all frames of records and checks each chunk of them; the frame after them is at hand then.
func (b *backupReader) records(head BackupHead, r Reader, check func(Reader, uint64, [][]byte) error, sink func(uint64, [][]byte) error) error {
	var chunk [][]byte
	var next uint64
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		first := next - uint64(len(chunk))
		if check != nil {
			if err := check(r, first, chunk); err != nil {
				return fmt.Errorf("%w: records %d to %d, before byte %d, are not those that the state knows: %w",
					ErrDamagedBackup, first, next-1, b.offset, err)
			}
		}
		if sink != nil {
			if err := sink(first, chunk); err != nil {
				return err
			}
		}
		chunk = nil
		return nil
	}
	for b.kind == frameRecords {
		if !head.WithRecords {
			return b.damaged("there are records in it, and the head says that there are none")
		}
		rest := b.payload
		if len(rest) < 8 || binary.BigEndian.Uint64(rest) != next {
			return b.damaged("record %d is expected there", next)
		}
		for rest = rest[8:]; len(rest) > 0; {
			if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
				return b.damaged("record %d goes beyond its frame", next)
			}
			size := binary.BigEndian.Uint32(rest)
			chunk = append(chunk, bytes.Clone(rest[4:4+size]))
			rest = rest[4+size:]
			if next++; next > head.Records {
				return b.damaged("there are more records than the state counts, %d", head.Records)
			}
			if next%RecordChunk == 0 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err := b.next(); err != nil {
			return err
		}
	}
	if head.WithRecords && next != head.Records {
		return b.damaged("there are %d of %d records", next, head.Records)
	}
	return flush()
}

func (b *backupReader) end() error {
	if b.kind != frameEnd {
		return b.damaged("an end is expected there, not a frame of kind %q", b.kind)
	}
	if !bytes.Equal(b.payload, b.before) {
		return b.damaged("the SHA-256 of all before is another")
	}
	if n, _ := io.Copy(io.Discard, b.r); n > 0 {
		return fmt.Errorf("%w: at byte %d: it goes on after its end", ErrDamagedBackup, b.offset)
	}
	return nil
}

// pairList is a Reader of pairs that came in order.
type pairList struct{ keys, values [][]byte }

func (l *pairList) add(k, v []byte) {
	l.keys, l.values = append(l.keys, bytes.Clone(k)), append(l.values, append([]byte{}, v...))
}

// Get implements Reader.
func (l *pairList) Get(key []byte) []byte {
	i, ok := slices.BinarySearchFunc(l.keys, key, bytes.Compare)
	if !ok {
		return nil
	}
	return l.values[i]
}

// Scan implements Reader.
func (l *pairList) Scan(prefix, from []byte, fn func(k, v []byte) bool) {
	start := prefix
	if bytes.Compare(from, prefix) > 0 {
		start = from
	}
	for i := sort.Search(len(l.keys), func(i int) bool { return bytes.Compare(l.keys[i], start) >= 0 }); i < len(l.keys); i++ {
		if !bytes.HasPrefix(l.keys[i], prefix) || !fn(l.keys[i], l.values[i]) {
			return
		}
	}
}
