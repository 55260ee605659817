package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"
)

// Records that are missing here are asked of the others over streams of their own, all integers big-endian:
//
//	question: number of the first record 8 | how many 8
//	answer:   each record there is, in order: length 4 | record; then 0xffffffff, after as many or at the first missing one
//
// A stream takes one question after another. Who asks believes nothing: each chunk is checked by the Machine against the
// state, which came with a snapshot that was checked, before it is written.
const (
	chunksAsked   = 64        // in one question
	recordsAtOnce = 512 << 20 // bytes of a chunk, of which most have some 200 KiB
	endOfRecords  = 1<<32 - 1

	recordsTimeout = 30 * time.Second // for a chunk
	fetchTimeout   = 5 * time.Second  // of a reader who waits for one
	retryFirst     = 100 * time.Millisecond
	retryMost      = 10 * time.Second
)

var errNoPeerHasThem = errors.New("raftstore: no other node has these records now")

// backfill fetches what is missing and, after the state was replaced or made anew, looks through what is here.
func (s *Store) backfill() {
	retry := retryFirst
	for {
		again := make(<-chan time.Time)
		if err := s.heal(); err != nil {
			s.logger.Warn("records are missing here", "error", err, "again_in", retry)
			again = time.After(retry)
			retry = min(2*retry, retryMost)
		} else {
			retry = retryFirst
		}
		select {
		case <-s.records.wake:
		case <-again:
		case <-s.ctx.Done():
			return
		}
	}
}

// heal returns nil when nothing is missing any more and nothing is left to look through.
func (s *Store) heal() error {
	begin := time.Now()
	fetched := uint64(0)
	for s.ctx.Err() == nil {
		if gap, ok := s.records.gap(); ok {
			n, err := s.fillIn(gap)
			fetched += n
			if err != nil {
				return err
			}
			continue
		}
		if fetched > 0 {
			s.logger.Info("fetched the records that were missing", "records", fetched, "took", time.Since(begin))
			fetched = 0
		}
		more, err := s.lookThrough()
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// peers is the other members, beginning with the one after this node.
func (s *Store) peers() []string {
	ids := slices.Sorted(maps.Keys(s.Membership()))
	i, found := slices.BinarySearch(ids, s.cfg.ID)
	before := ids[:i]
	if found {
		i++
	}
	return slices.Concat(ids[i:], before)
}

// fillIn fetches some of what a gap lacks from the first node that has it, and says how many records that were.
func (s *Store) fillIn(gap span) (filled uint64, err error) {
	why := errNoPeerHasThem
	for _, id := range s.peers() {
		filled, err = s.fillFrom(id, gap)
		if filled > 0 {
			// On the disk before the next: a crash would otherwise lose as much as the operating system holds back.
			return filled, errors.Join(s.records.sync(), s.ctx.Err())
		}
		if err != nil {
			why = fmt.Errorf("%w: %q: %w", errNoPeerHasThem, id, err)
		}
	}
	return 0, why
}

func (s *Store) fillFrom(id string, gap span) (filled uint64, err error) {
	stream, err := s.askFor(s.ctx, id)
	if err != nil {
		return 0, err
	}
	defer func() { _ = stream.Close() }() // nothing is held back
	first := gap.first - gap.first%RecordChunk
	chunks := (gap.end - first + RecordChunk - 1) / RecordChunk
	if err := stream.ask(first, min(chunks, chunksAsked)*RecordChunk); err != nil {
		return 0, err
	}
	for first < gap.end {
		list, err := s.receive(stream, first)
		if err != nil || len(list) == 0 {
			return filled, err
		}
		skip := min(gap.first-min(gap.first, first), uint64(len(list)))
		if err := s.records.fill(first+skip, list[skip:]); err != nil {
			return filled, err
		}
		filled += uint64(len(list)) - skip
		first += uint64(len(list))
		if first%RecordChunk != 0 {
			break // as many as there are
		}
	}
	return filled, nil
}

// receive reads a chunk and checks it. It is empty when the other node has no more.
func (s *Store) receive(stream *recordStream, first uint64) ([][]byte, error) {
	list, err := stream.chunk()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	err = s.state.view(func(t *boltTx, _ position) error {
		want := min(RecordChunk, t.content.records-min(first, t.content.records))
		if uint64(len(list)) < want {
			list = nil
			return nil
		}
		list = list[:want]
		return s.cfg.Machine.CheckRecords(t, first, list)
	})
	if err != nil {
		return nil, fmt.Errorf("the records from %d on are not the ones that were appended: %w", first, err)
	}
	return list, nil
}

// fetchFor fetches the chunk of a record for somebody who waits, and returns it from that record on.
func (s *Store) fetchFor(ctx context.Context, number uint64) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	why := errNoPeerHasThem
	first := number - number%RecordChunk
	for _, id := range s.peers() {
		list, err := s.fetchFrom(ctx, id, first)
		if err == nil && uint64(len(list)) > number-first {
			return list[number-first:], nil
		}
		if err != nil {
			why = fmt.Errorf("%w: %q: %w", errNoPeerHasThem, id, err)
		}
	}
	return nil, why
}

func (s *Store) fetchFrom(ctx context.Context, id string, first uint64) ([][]byte, error) {
	stream, err := s.askFor(ctx, id)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer func() {
		if stop() {
			_ = stream.Close() // nothing is held back
		}
	}()
	if err := stream.ask(first, RecordChunk); err != nil {
		return nil, err
	}
	return s.receive(stream, first)
}

// lookThrough checks a chunk that is here, when there is reason to, and says whether more are to be checked. A chunk whose
// checksums are right can still be wrong: this node's disk may hold what happened in a history that the cluster was
// restored from.
func (s *Store) lookThrough() (more bool, err error) {
	first, version, ok := s.records.suspect()
	if !ok {
		return false, nil
	}
	begin := time.Now()
	var list [][]byte
	if _, err := s.records.read(first, func(_ uint64, record []byte) bool {
		list = append(list, append([]byte(nil), record...))
		return len(list) < RecordChunk
	}); err != nil && !errors.Is(err, ErrRecordsMissing) {
		return false, err
	}
	whole := false
	err = s.state.view(func(t *boltTx, _ position) error {
		if whole = uint64(len(list)) >= min(RecordChunk, t.content.records-min(first, t.content.records)); !whole {
			return nil
		}
		list = list[:min(uint64(len(list)), t.content.records-min(first, t.content.records))]
		if len(list) == 0 {
			return nil
		}
		return s.cfg.Machine.CheckRecords(t, first, list)
	})
	if err != nil {
		return true, s.replaceWrong(first, version, list, err)
	}
	if whole {
		s.records.trust(first)
	}
	// A quarter of one processor at most: nothing waits for this.
	select {
	case <-time.After(min(3*time.Since(begin), time.Second)):
	case <-s.ctx.Done():
	}
	return true, nil
}

// replaceWrong takes the first record of a chunk that differs from the others' out of use, with all behind it in its
// segment.
func (s *Store) replaceWrong(first, version uint64, list [][]byte, why error) error {
	right, err := s.fetchFor(s.ctx, first)
	if err != nil {
		return errors.Join(fmt.Errorf("the records from %d on are wrong: %w", first, why), err)
	}
	for i, record := range list {
		if i >= len(right) || string(record) != string(right[i]) {
			return s.records.distrust(first+uint64(i), version, why)
		}
	}
	return nil
}

// askFor opens a stream for records.
func (s *Store) askFor(ctx context.Context, id string) (*recordStream, error) {
	conn, err := s.dialStream(ctx, id, streamRecords)
	if err != nil {
		return nil, err
	}
	return &recordStream{Conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// recordStream is the asking end.
type recordStream struct {
	net.Conn
	in   *bufio.Reader
	done bool // the answer has ended
}

func (s *recordStream) ask(first, n uint64) error {
	s.done = false
	if err := s.SetDeadline(time.Now().Add(recordsTimeout)); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, first)
	_, err := s.Write(binary.BigEndian.AppendUint64(b, n))
	return err
}

// chunk reads up to RecordChunk records of the answer.
func (s *recordStream) chunk() (list [][]byte, err error) { return s.read(RecordChunk, recordsAtOnce) }

// read reads up to as many records of the answer, of so many bytes in all.
func (s *recordStream) read(most, bytes int) (list [][]byte, err error) {
	if err := s.SetDeadline(time.Now().Add(recordsTimeout)); err != nil {
		return nil, err
	}
	total := 0
	for !s.done && len(list) < most {
		var head [4]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		size := binary.BigEndian.Uint32(head[:])
		if size == endOfRecords {
			s.done = true
			break
		}
		if total += int(size); size > maxRecord || total > bytes {
			return nil, fmt.Errorf("read records: one of %d bytes, %d in all", size, total)
		}
		record, err := readInto(nil, s.in, int(size))
		if err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		list = append(list, record)
	}
	return list, nil
}

// serveRecords answers the others until the node stops.
func (s *Store) serveRecords(from net.Listener) {
	for {
		conn, err := from.Accept()
		if err != nil {
			return // closed with the node
		}
		s.duties.Go(func() {
			defer func() { _ = conn.Close() }() // what it was sent, it was sent
			if err := s.answerRecords(conn); !errors.Is(err, io.EOF) && s.ctx.Err() == nil {
				s.logger.Debug("a stream of records ended", "error", err)
			}
		})
	}
}

// answerRecords ends with the stream.
func (s *Store) answerRecords(conn net.Conn) error {
	out := bufio.NewWriterSize(conn, 256<<10)
	var question [16]byte
	for {
		if err := conn.SetDeadline(time.Now().Add(recordsTimeout)); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, question[:]); err != nil {
			return err
		}
		first, left := binary.BigEndian.Uint64(question[:]), binary.BigEndian.Uint64(question[8:])
		var failed error
		send := func(_ uint64, record []byte) bool {
			if left == 0 {
				return false
			}
			left--
			head := binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(len(record)))
			failed = errors.Join(conn.SetDeadline(time.Now().Add(recordsTimeout)), second(out.Write(head)), second(out.Write(record)))
			return failed == nil
		}
		var err error
		if first == statesAsked {
			for _, c := range s.checkpoints.all() {
				_ = send(0, c.encode()) // an error is kept in failed
			}
		} else {
			_, err = s.records.read(first, send)
		}
		if err != nil && !errors.Is(err, ErrRecordsMissing) {
			return err
		}
		if failed == nil {
			failed = binary.Write(out, binary.BigEndian, uint32(endOfRecords))
		}
		if err := errors.Join(failed, out.Flush()); err != nil {
			return err
		}
	}
}

func second[T any](_ T, err error) error { return err }
