package raftstore

import (
	"errors"

	"github.com/hashicorp/raft"
)

// bridge mends raft#697 in a request that comes from a leader. After a snapshot up to index i, and entries from i+1 on,
// raft finds nothing at i: it looks into its log, where i never was, and remembers a snapshot's index only while nothing
// came after it. So it refuses entries "after i", as they come when an answer was lost, and is sent the snapshot again,
// for ever. What the leader says to be at i is what the snapshot ends with, term and all, so there is nothing left to be
// compared, and raft is told to compare nothing. It may then call committed what the leader has shown it to have, and not
// whatever else its log holds.
func (s *Store) bridge(request any) any {
	asked, ok := request.(*raft.AppendEntriesRequest)
	if !ok || asked.PrevLogEntry == 0 {
		return request
	}
	last, err := s.log.LastIndex()
	if err != nil || last <= asked.PrevLogEntry {
		return request // raft's own case, and nearly always this one
	}
	if err := s.log.GetLog(asked.PrevLogEntry, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		return request
	}
	list, err := s.snaps.List()
	if err != nil || len(list) == 0 || list[0].Index != asked.PrevLogEntry || list[0].Term != asked.PrevLogTerm ||
		s.Index() < asked.PrevLogEntry {
		return request
	}
	mended := *asked
	mended.PrevLogEntry, mended.PrevLogTerm = 0, 0
	mended.LeaderCommitIndex = min(asked.LeaderCommitIndex, asked.PrevLogEntry+uint64(len(asked.Entries)))
	return &mended
}
