package raftstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// fsm feeds committed entries to the Machine. Raft calls it from one goroutine, which owns the fields that are not
// otherwise safe for concurrent use.
type fsm struct {
	machine Machine
	state   *state
	records *records
	applied *watermark
	checks  *checkpoints
	every   uint64 // entries, from one checkpoint to the next
	halt    func(error)
	logger  *slog.Logger
	failed  error // owned by raft's goroutine; once set, nothing is applied or acknowledged
}

// outcome is what a proposer gets of an entry that was committed.
type outcome struct {
	result any
	err    error // set when this node could not apply it
}

func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies all entries in one transaction, with the position they end at.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	outcomes := make([]any, len(logs))
	if f.failed == nil {
		if err := f.apply(logs, outcomes); err != nil {
			// The entries are committed, but this node does not have them. To go on would leave a hole in its state that
			// later commands are decided on: whoever it then leads would be told another truth than the others.
			f.failed = fmt.Errorf("apply entries %d to %d: %w", logs[0].Index, logs[len(logs)-1].Index, err)
			f.halt(f.failed)
		}
	}
	if f.failed != nil {
		for i := range outcomes {
			outcomes[i] = outcome{err: f.failed}
		}
	}
	return outcomes
}

func (f *fsm) apply(logs []*raft.Log, outcomes []any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the machine panicked: %v", p)
		}
	}()
	var passed []checkpoint
	reached, err := f.state.update(func(t *boltTx, at position) (position, error) {
		first := t.content.records
		reached := at
		for i, l := range logs {
			outcomes[i] = outcome{}
			if l.Index <= at.index {
				continue // replayed after a clean start: the state file has it
			}
			if l.Type == raft.LogCommand {
				outcomes[i] = outcome{result: f.machine.Apply(t, l.Index, l.Data)}
			}
			reached = position{l.Index, l.Term}
			if l.Index%f.every == 0 {
				if err := t.flush(); err != nil {
					return at, err
				}
				passed = append(passed, checkpoint{l.Index, t.content.hash()})
			}
		}
		if len(t.records) == 0 {
			return reached, nil
		}
		// Before the state says that they are there. A crash in between leaves records that no state counts, which are cut
		// off when these entries are applied again.
		return reached, f.records.append(first, t.records)
	})
	if err != nil {
		return err
	}
	f.checks.add(passed)
	f.applied.set(reached.index)
	return nil
}

// Snapshot fixes the state to write; Persist writes it while Apply goes on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed != nil {
		return nil, f.failed
	}
	snap, err := fixState(f.state, f.records, f.halt)
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// fixState fixes a state to be written.
func fixState(st *state, records *records, halt func(error)) (snap *stateSnapshot, err error) {
	err = st.use(func(db *bbolt.DB) error {
		tx, err := db.Begin(false)
		if err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		at, err := readPosition(tx)
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		t, err := newBoltTx(tx)
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		snap = &stateSnapshot{tx: tx, state: t, at: at, records: records, halt: halt}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return snap, nil
}

// Restore replaces the state by a snapshot's, once every byte and the state itself have been checked.
func (f *fsm) Restore(source io.ReadCloser) error {
	if f.failed != nil {
		return f.failed
	}
	temp := f.state.path + ".restore"
	defer func() { _ = os.Remove(temp) }() // gone by rename when all went well
	info, err := writeStateFile(temp, source)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	at, here, err := f.state.content()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if at.index > info.at.index {
		// This state holds all of the snapshot and more that was committed; raft replays from the snapshot's index and
		// ApplyBatch skips what is here. Readers never see the state go backwards.
		f.logger.Info("snapshot is older than the state, kept the state", "snapshot", info.at.index, "state", at.index)
		return nil
	}
	if at == info.at {
		err = sameContent(at, here, info.content)
	} else if err = f.state.replace(temp); err == nil {
		f.records.expect(info.content.records, true)
		f.applied.set(info.at.index)
	}
	if err != nil {
		f.failed = fmt.Errorf("restore: %w", err)
		f.halt(f.failed)
	}
	return f.failed
}

// sameContent halts a node whose state at the snapshot's index is another than the snapshot's.
func sameContent(at position, here, there content) error {
	if here == there {
		return nil
	}
	mine, theirs := here.hash(), there.hash()
	return fmt.Errorf("at index %d this node's state is %x and the snapshot's is %x: one of the two diverged",
		at.index, mine[:8], theirs[:8])
}
