package raftstore

import (
	"errors"
	"io"

	"github.com/hashicorp/raft"
)

// bridge mends what raft makes of requests that reach behind what this node has applied. All of that is committed, so a
// leader has it too, entry for entry: there is nothing to be compared, and nothing to be taken back.
//
// A snapshot of what is applied already comes when an earlier request, or its answer, was late. Raft would go back to it,
// and panic in the next request: the entries after it may be compacted. It gets a heartbeat in its place.
//
// Entries after a snapshot come again when an answer was lost. Raft looks for the entry before them in its log, where that
// never was, and remembers a snapshot's index only while nothing came after it. So it refuses, and is sent the snapshot
// again, for ever (raft#697). It is told to compare nothing, gets the entries that it has not applied, and may call
// committed what the leader has shown it to have, and not whatever else its log holds.
func (s *Store) bridge(rpc raft.RPC) any {
	switch asked := rpc.Command.(type) {
	case *raft.InstallSnapshotRequest:
		if asked.LastLogIndex > s.raft.AppliedIndex() {
			return asked
		}
		_, _ = io.Copy(io.Discard, rpc.Reader) // what follows it on its connection is the next request
		return &raft.AppendEntriesRequest{RPCHeader: asked.RPCHeader, Term: asked.Term}
	case *raft.AppendEntriesRequest:
		return s.bridgeEntries(asked)
	}
	return rpc.Command
}

func (s *Store) bridgeEntries(asked *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	applied := s.raft.AppliedIndex()
	if asked.PrevLogEntry == 0 || asked.PrevLogEntry > applied {
		return asked
	}
	if err := s.log.GetLog(asked.PrevLogEntry, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		return asked
	}
	mended := *asked
	mended.PrevLogEntry, mended.PrevLogTerm = 0, 0
	mended.LeaderCommitIndex = min(asked.LeaderCommitIndex, asked.PrevLogEntry+uint64(len(asked.Entries)))
	for len(mended.Entries) > 0 && mended.Entries[0].Index <= applied {
		mended.Entries = mended.Entries[1:]
	}
	return &mended
}

// answerTo gives raft's answer the type that whoever asked waits for.
func answerTo(asked, answer any) any {
	if _, ok := asked.(*raft.InstallSnapshotRequest); ok {
		if a, ok := answer.(*raft.AppendEntriesResponse); ok {
			return &raft.InstallSnapshotResponse{RPCHeader: a.RPCHeader, Term: a.Term, Success: a.Success}
		}
	}
	return answer
}
