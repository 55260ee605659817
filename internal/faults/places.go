package faults

// When says what has to happen for a node to come by a place.
type When int

const (
	// Leading: it leads and somebody writes.
	Leading When = iota
	// Writing: somebody writes.
	Writing
	// Compacting: some hundred entries were written.
	Compacting
	// Electing: the leader is gone.
	Electing
	// Starting: it starts after a crash.
	Starting
	// Stopping: it is told to stop.
	Stopping
	// Joining: it has lost its disk, and is sent everything.
	Joining
	// Restoring: `snapshot restore` makes its data of a snapshot.
	Restoring
	// Recovering: `cluster recover` has it go on alone.
	Recovering
)

// Point is a failpoint, and when it is come by.
type Point struct {
	Edit
	When When
	WAL  bool // only with log_store: wal
}

// Places are the failpoints: around each write that something acknowledged rests on.
func Places() []Point {
	var all []Point
	at := func(when When, edits ...Edit) {
		for _, e := range edits {
			all = append(all, Point{Edit: e, When: when, WAL: e.File == "raftstore/wal.go"})
		}
	}
	at(Leading,
		before("raftstore/propose.go", "futures[i] = s.raft.Apply(p.data, patience)", "propose: not yet"),
		before("raftstore/propose.go", "out, ok := future.Response().(outcome)", "propose: applied, not answered"),
		before("control/mint.go", "committed, err := n.commitRecord(ctx, call, record, m)", "mint: prepared, not committed"),
		before("control/mint.go", "_, span := n.spans.Start(ctx, \"ca.sign\")", "mint: committed, not signed"),
		before("ca/gate.go", "return g.key.Sign(rand, digest, opts)", "mint: about to sign"),
		before("control/mint.go", "n.minted.put(committed.Serial, chain, n.now())", "mint: signed, not handed out"),
	)
	at(Writing,
		Edit{Place: "before: append to the log"}, // one line of code for each kind of write: see Edits
		Edit{Place: "after: append to the log"},
		before("raftstore/fsm.go", "return reached, f.records.append(first, t.records)", "records: not yet"),
		before("raftstore/records.go", "grown.size += int64(len(b))", "records: written, not counted"),
		before("raftstore/state.go", "if err := t.flush(); err != nil {", "apply: not written"),
		before("raftstore/fsm.go", "f.applied.set(reached.index)", "apply: written, not told"),
	)
	at(Compacting,
		before("raftstore/snapshot.go", "if err := s.records.sync(); err != nil {", "snapshot: begun"),
		before("raftstore/snapshot.go", "if err := s.writeTo(sink); err != nil {", "snapshot: records synced"),
		before("raftstore/snapshot.go", "_, err := w.Write(crc.Sum(nil))", "snapshot: state written"),
		before("raftstore/snapshot.go", "if !bytes.Equal(s.tail, s.crc.Sum(nil)) {", "snapshot: written, not in its place"),
		Edit{
			"raftstore/snapshot.go", "return s.SnapshotSink.Close()",
			"err := s.SnapshotSink.Close(); " + hit("snapshot: in its place") + "; return err", "snapshot: in its place",
		},
		before("raftstore/records.go", "if err := os.Rename(was, r.path(&sealed)); err != nil {", "records: full, not sealed"),
		before("raftstore/records.go", "*g = sealed", "records: sealed, not told"),
		before("raftstore/log.go", "if err := l.LogStore.DeleteRange(from, end); err != nil {", "compact: not yet"),
		before("raftstore/log.go", "from = end + 1", "compact: a step done"),
		before("raftstore/wal.go", "if err := m.BoltMetaDB.CommitState(state)", "log: next segment not entered"),
		before("raftstore/wal.go", "return nil // the next segment is entered", "log: next segment entered"),
	)
	at(Electing,
		Edit{Place: "before: write a vote"}, Edit{Place: "after: write a vote"},
		Edit{Place: "before: write a term"}, Edit{Place: "after: write a term"},
	)
	at(Starting,
		before("raftstore/recovery.go", "return s, false, err", "start: old state removed"),
		before("raftstore/fsm.go", "at, here, err := f.state.content()", "restore: state made"),
		before("raftstore/state.go", "if err := os.Rename(path, s.path); err != nil {", "restore: not in its place"),
		before("raftstore/state.go", "if err := syncDir(filepath.Dir(s.path)); err != nil {", "restore: in its place, not synced"),
		before("raftstore/fsm.go", "f.applied.set(info.at.index)", "restore: done, not told"),
		before("raftstore/records.go", "return r.shorten(g, number)", "records: not cut back"),
	)
	at(Stopping,
		before("raftstore/state.go", "db.NoFreelistSync = false", "stop: state not synced"),
		before("raftstore/recovery.go", "_, err = file.WriteString(left{at, sum}.marker())", "stop: empty marker"),
		before("raftstore/recovery.go", "return syncDir(dir)", "stop: marker not synced"),
	)
	at(Joining,
		before("raftstore/place.go", "if err := p.s.log.LogStore.Set([]byte(lineageKey), line[:]); err != nil {", "join: half kept"),
		before("raftstore/place.go", "term := s.raft.CurrentTerm()", "join: caught up"),
		before("raftstore/place.go", "s.logger.Info(\"this node has caught up\"", "join: caught up, kept"),
		before("raftstore/backfill.go", "if err := s.records.fill(first+skip, list[skip:]); err != nil {", "backfill: not written"),
		before("raftstore/backfill.go", "return filled, errors.Join(s.records.sync(), s.ctx.Err())", "backfill: written, not synced"),
	)
	return all
}

// OfflinePlaces are the failpoints in commands on a node that does not run: around each step between what it had and what
// it will have.
func OfflinePlaces() []Point {
	var all []Point
	at := func(when When, edits ...Edit) {
		for _, e := range edits {
			all = append(all, Point{Edit: e, When: when})
		}
	}
	both := []Edit{
		before("raftstore/history.go", "if err := h.clear(); err != nil {", "history: folder made"),
		before("raftstore/history.go", "log, err := openLog(h.stage, h.log)", "history: without a log"),
		before("control/epoch.go", "data, err := json.Marshal(e)", "history: without word of the epoch"),
		before("raftstore/history.go", "return errors.Join(syncTree(h.stage), syncDir(h.dir))", "history: not synced"),
		before("raftstore/history.go", "err = os.Rename(h.stage, filepath.Join(h.dir, historyWhole))", "history: not done"),
		before("raftstore/history.go", "if err := errors.Join(syncDir(h.dir), takeHistory(h.dir)", "history: done, not in place"),
		before("raftstore/history.go", "if err := errors.Join(os.Rename(whole, in), syncDir(dir)); err != nil {", "history: the old one is aside"),
		before("raftstore/history.go", "if err := os.Rename(filepath.Join(in, p.Name())", "history: moving in"),
		before("raftstore/history.go", "return errors.Join(os.RemoveAll(in), syncDir(dir))", "history: moved in"),
	}
	at(Restoring, both...)
	at(Restoring,
		before("raftstore/restore.go", "state := &pendingSnapshot{", "restore: begun"),
		before("raftstore/restore.go", "recs.expect(done.Head.Records, false)", "restore: all read"),
	)
	at(Recovering, both...)
	at(Recovering,
		before("raftstore/recover.go", "total, err := o.loadState(path)", "recover: begun"),
		before("raftstore/recover.go", "if err := o.snapshot(h, st, recs); err != nil {", "recover: replayed"),
		before("raftstore/recover.go", "term, err := o.log.GetUint64(", "recover: state written"),
		before("raftstore/recover.go", "closed = true", "recover: finished"),
		before("raftstore/history.go", "if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, aside, name)); err != nil {", "recover: putting aside"),
	)
	return all
}

// Edits is everything that makes the binary of the tests another than the one that ships.
func Edits() []Edit {
	edits := []Edit{
		{File: "raftstore/log.go", Old: "\terr := fn()\n", New: "\tfailpoint.Hit(\"before: \" + op)\n\terr := fn()\n\tfailpoint.Hit(\"after: \" + op)\n"},
		// What happens once in hours happens every second.
		{File: "raftstore/config.go", Old: "defaultSnapshotThreshold = 64 << 10", New: "defaultSnapshotThreshold = 150"},
		{File: "raftstore/config.go", Old: "defaultTrailingLogs      = 128 << 10", New: "defaultTrailingLogs      = 300"},
		{File: "raftstore/config.go", Old: "snapshotCheck            = 30 * time.Second", New: "snapshotCheck            = 250 * time.Millisecond"},
		{File: "raftstore/log.go", Old: "compactionStep = 4096", New: "compactionStep = 64"},
		{File: "raftstore/segment.go", Old: "segmentSize = 16 << 20", New: "segmentSize = 64 << 10"},
		{File: "raftstore/wal.go", Old: "walSegmentSize = 64 << 20", New: "walSegmentSize = 64 << 10"},
	}
	seen := make(map[string]bool)
	for _, p := range append(Places(), OfflinePlaces()...) {
		if p.File != "" && !seen[p.Place] {
			edits = append(edits, p.Edit)
		}
		seen[p.Place] = true
	}
	return edits
}
