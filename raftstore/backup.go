package raftstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
)

// A backup is one file that a cluster can be made of again, all integers big-endian:
//
//	magic 8 | frames
//	frame:  kind 1 | length 4 | payload | CRC-32C of the frame's offset in 8 bytes, its kind, its length and its payload 4
//
//	head    BackupHead as JSON
//	state   a piece of one snapshot; the next piece follows
//	records number of the first 8 | one after the other: length 4, record
//	end     SHA-256 of all bytes before this frame
//
// in this order, each but head and end as often as there is something. Nothing follows the end. The CRC of a frame says
// where a byte changed, the end that nothing is missing, and what is in the file is checked against itself besides: the
// snapshot's own checksum, the state's hash, and the records against the state.
const (
	backupMagic = "hpback\x00\x01"

	frameHead    = 'h'
	frameState   = 's'
	frameRecords = 'r'
	frameEnd     = 'e'

	backupPiece = 1 << 20
	maxFrame    = maxRecord + backupPiece
	maxAbout    = 64 << 10
)

// BackupFormat is the version of what Backup writes.
const BackupFormat = 1

// BackupHead says what a backup is of.
type BackupHead struct {
	Format      int             `json:"format"`
	Cluster     string          `json:"cluster"` // Config.Cluster
	Lineage     string          `json:"lineage"` // of the history that it was taken from, in hex
	Node        string          `json:"node"`    // that wrote it
	Index       uint64          `json:"index"`   // of the last command in the state
	Term        uint64          `json:"term"`
	StateHash   string          `json:"state_hash"` // hex
	Records     uint64          `json:"records"`    // as of the state
	WithRecords bool            `json:"with_records"`
	Members     []BackupMember  `json:"members"`
	About       json.RawMessage `json:"about"` // what the host says of the state
}

// BackupMember is a member of the cluster when the backup was written.
type BackupMember struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Role    Role   `json:"role"`
}

// BackupOptions say what goes into a backup.
type BackupOptions struct {
	WithRecords bool
	// About describes the state, in JSON that BackupCheck.About can check.
	About func(Reader) ([]byte, error)
	// Ready, unless nil, is called once the state is at hand, before the first byte is written.
	Ready func(BackupHead) error
}

// Backup writes all that was acknowledged before the call. Only the leader can: see Linearize. The state is put on this
// node's disk first, since a reader as slow as w may be would hold back the writers.
func (s *Store) Backup(ctx context.Context, w io.Writer, opts BackupOptions) (head BackupHead, err error) {
	if err := s.Linearize(ctx); err != nil {
		return head, err
	}
	spool, head, err := s.spoolState(opts)
	if err != nil {
		return head, fmt.Errorf("raftstore: back up: %w", err)
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	if opts.Ready != nil {
		if err := opts.Ready(head); err != nil {
			return head, err
		}
	}
	b := newBackupWriter(w)
	if err := b.write([]byte(backupMagic)); err != nil {
		return head, err
	}
	text, err := json.Marshal(head)
	if err != nil {
		return head, err
	}
	if err := b.frame(frameHead, text); err != nil {
		return head, err
	}
	if err := b.pieces(ctx, spool); err != nil {
		return head, err
	}
	if opts.WithRecords {
		if err := s.backupRecords(ctx, b, head.Records); err != nil {
			return head, err
		}
	}
	return head, b.frame(frameEnd, b.sum.Sum(nil))
}

// spoolState writes the state's snapshot to a file without a name, and stands at its beginning.
func (s *Store) spoolState(opts BackupOptions) (file *os.File, head BackupHead, err error) {
	if err := s.enter(); err != nil {
		return nil, head, err
	}
	defer s.ops.Done()
	file, err = os.CreateTemp(s.cfg.Dir, "backup-*.tmp")
	if err != nil {
		return nil, head, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := os.Remove(file.Name()); err != nil { // a crash leaves nothing behind
		return file, head, err
	}
	snap, err := fixState(s.state, s.records, s.halt)
	if err != nil {
		return file, head, err
	}
	defer snap.Release()
	line := s.place.lineage()
	hash := snap.state.content.hash()
	head = BackupHead{
		Format: BackupFormat, Cluster: s.cfg.Cluster, Lineage: hex.EncodeToString(line[:]), Node: s.cfg.ID,
		Index: snap.at.index, Term: snap.at.term, StateHash: hex.EncodeToString(hash[:]),
		Records: snap.state.content.records, WithRecords: opts.WithRecords, Members: s.backupMembers(),
	}
	if head.About, err = opts.About(snap.state); err != nil {
		return file, head, err
	}
	if err := snap.writeTo(file); err != nil {
		return file, head, err
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, head, err
}

func (s *Store) backupMembers() []BackupMember {
	var list []BackupMember
	for id, role := range s.Membership() {
		m, _ := s.roster.get(id)
		list = append(list, BackupMember{ID: id, Address: m.Address, Role: role})
	}
	slices.SortFunc(list, func(a, b BackupMember) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func (s *Store) backupRecords(ctx context.Context, b *backupWriter, total uint64) error {
	var batch []byte
	var next uint64
	var failed error
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := b.frame(frameRecords, batch)
		batch = batch[:0]
		return err
	}
	if total == 0 {
		return nil
	}
	err := s.ReadRecords(ctx, 0, func(number uint64, record []byte) bool {
		if number != next {
			failed = fmt.Errorf("%w: record %d", ErrRecordsMissing, next)
			return false
		}
		if len(batch)+len(record) > backupPiece {
			failed = flush()
		}
		if len(batch) == 0 {
			batch = binary.BigEndian.AppendUint64(batch, number)
		}
		batch = binary.BigEndian.AppendUint32(batch, uint32(len(record)))
		batch = append(batch, record...)
		next++
		if failed == nil {
			failed = context.Cause(ctx)
		}
		return failed == nil && next < total
	})
	if err = errors.Join(err, failed); err == nil && next < total {
		err = fmt.Errorf("%w: record %d", ErrRecordsMissing, next)
	}
	if err != nil {
		return err
	}
	return flush()
}

// backupWriter writes frames.
type backupWriter struct {
	w      io.Writer
	sum    hash.Hash
	offset uint64
	piece  []byte
}

func newBackupWriter(w io.Writer) *backupWriter { return &backupWriter{w: w, sum: sha256.New()} }

func (b *backupWriter) write(p []byte) error {
	_, _ = b.sum.Write(p) // a hash's Write never fails
	b.offset += uint64(len(p))
	_, err := b.w.Write(p)
	return err
}

func (b *backupWriter) frame(kind byte, payload []byte) error {
	head := frameIntro(kind, len(payload))
	tail := binary.BigEndian.AppendUint32(nil, backupCRC(b.offset, head, payload))
	for _, p := range [][]byte{head, payload, tail} {
		if err := b.write(p); err != nil {
			return err
		}
	}
	return nil
}

func frameIntro(kind byte, size int) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, uint32(size))
}

// backupCRC is a frame's. The offset is in it, so that a frame in another's place is damage too.
func backupCRC(offset uint64, head, payload []byte) uint32 {
	crc := crc32.Checksum(binary.BigEndian.AppendUint64(nil, offset), castagnoli())
	return crc32.Update(crc32.Update(crc, castagnoli(), head), castagnoli(), payload)
}

// pieces writes what the file holds as frames of the state.
func (b *backupWriter) pieces(ctx context.Context, from io.Reader) error {
	b.piece = make([]byte, backupPiece)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(from, b.piece)
		if n > 0 {
			if err := b.frame(frameState, b.piece[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// lineageFrom reads a lineage of a head.
func lineageFrom(text string) (line lineage, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != lineageSize {
		return line, fmt.Errorf("no lineage: %q", text)
	}
	return lineage(b), nil
}
