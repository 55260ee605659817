// Package raftstore is a replicated log that hosts one deterministic [Machine] on each node of a small cluster. It knows
// bytes, node keys and indexes, and nothing of what the commands mean: whoever needs to know who may do what decides that
// in the Machine, where every node decides it again.
//
// # Duty
//
// What [Store.Propose] has acknowledged is on the disks of a quorum, was applied everywhere in one order, and is never
// lost while a quorum of disks lives. What Propose could not find out it calls [ErrAmbiguous], and nothing else so. What
// a [Store.View] shows after a [Store.Linearize] is no older than anything anyone was told before.
//
//	                                                  ┌─► records/: what the Machine appended, in checksummed segments
//	Propose ──► raft log (synced) ──► quorum ──► ApplyBatch ──► state.db: Machine's keys + position, one transaction
//	                  ▲                                              │         ▲
//	   AppendEntries over pinned-key TLS                        snapshots/ ────┘ restore: checked, synced, renamed
//	                                                           (pairs + state hash + CRC)
//
// # Trust boundary
//
// A peer is a public key. Each node has a long-lived Ed25519 key, and the roster, which whoever hosts the store gives to
// all nodes, lists them. Connections are TLS 1.3 in which both ends prove their key; certificates are made on the spot to carry it, and no name,
// date or signature in them is looked at. There is no CA to ask and nothing that expires: a cluster whose transport
// certificates had to be renewed through the cluster itself would, once stopped for too long, never start again. The
// first bytes on a connection then say what it carries, raft's messages or an application stream, of which cluster and
// history the node is, and its time-outs, so that a node that votes by other rules is not listened to at all, and is told
// why.
//
// A member's key is worth that member: raft does not survive a member that lies. A stranger can cost the node a bounded
// number of half-open connections, of which the oldest makes room, and one log line a second.
//
// # What is kept, and what is a cache
//
// The log holds votes and entries and is synced with every write; together with the newest snapshot it is the node. It is
// a bbolt file, or segments that are appended to ([LogFormat]); what either took before a crash was all written or is all
// gone, and both pass the same tests. Either is read through at a start, and refused where it is not what was written, or
// is behind the mark that follows it: what a disk forgot without a word may have been a vote.
// The state file is a cache of the two. It is never synced while it runs, so after a crash its pages may belong to
// different transactions; only a marker, written after a last sync by a Close in order and removed before the first write
// of the next run, says that it can be believed; it has the checksum of the file. Without the marker, or with another
// checksum, it is deleted and made anew. The index applied last
// is kept inside the state's own transactions, since raft's AppliedIndex means "sent", not "applied". Commands that are
// committed together are applied in one transaction, whose writes wait in memory until its end, or until an entry at which
// nodes compare their states: each pair is written, and summed, once.
//
// A snapshot is the pairs of the state as of one transaction in the order of their keys, compressed, followed by the hash
// of its content and a checksum. It is checked when it is written, against what the state file has taken in over time, when
// it arrives, before it replaces a state and at a start that needs it. A damaged one is refused; when the
// log cannot do without it, the node does not start and the error says what to copy from where. At an index where a
// snapshot and this node's state disagree, the node halts: one of two nodes has diverged, and guessing which would make
// it two.
//
// # Records
//
// Beside its keys a Machine may append records: a list that only grows, for what is kept for ever and seldom read. How
// many there are is part of the state; what they are follows from the log, as the state does, so they stand outside of the
// snapshots in segments of their own. They are written before the transaction that counts them, so that a crash in between
// leaves too many and never too few; what is applied again after a crash first cuts them back. They are brought to the disk
// before a snapshot may cover them, since the entries that made them are dropped then.
//
// A node that was sent a snapshot has the state at once, votes, and lacks the records before it. It fetches them in the
// background from any member that has them, a chunk at a time, and believes none: the Machine checks each chunk against the
// state. A reader who comes sooner gets the chunk from another member, or [ErrRecordsMissing]. A segment that turns out to
// be damaged is put aside and fetched again the same way, and after a start that made the state anew what is here is
// checked against it, slowly.
//
// # Reads
//
// One barrier a term, then VerifyLeader per round of reads, then the term again. Reads that arrive during a round share
// the next one, never the one under way. Raft's VerifyLeader counts any answer that comes after the question, also an
// answer to a message sent before it: a process that was paused and finds old answers in its sockets would be confirmed
// after others have elected a new leader. So the transport numbers its messages, and a read is confirmed only by answers
// to messages sent after it came. TestOldAnswersConfirmNothing shows both.
//
// # When the leader is gone
//
// Raft waits for heartbeats to be overdue, on a quorum, before anybody is elected. A process that was killed can be told
// sooner: its streams end, and its port refuses. A voter that sees both asks for votes at once, the others half a heartbeat's
// time-out after it (gone.go). A stream that ends alone says nothing, and a machine that vanished is waited for.
//
// # Who is a member
//
// The roster says whom a node talks to; raft's configuration, which is replicated, says who is a member and who votes. A
// node is put on the roster first, then made a nonvoter, which is sent the log, and given a vote once it has caught up and
// answers that it would cast one:
//
//	SetMembers (on all) ─► AddNonvoter ─► catches up ─► Promote        Remove ─► SetMembers (on all)
//
// Each step is refused when those that can be reached would be no quorum after it.
//
// A node without a log asks the others before it does anything. Where one has more in its log than the first members, the
// node joins: it takes what it is sent and casts no vote until it has caught up, for it may be a voter that lost its disk
// and with it the memory of what it promised. Only where all first members have answered that they have nothing do they
// make a new cluster. A log belongs to a lineage, which ends when the cluster is restored from a snapshot or goes on
// without its quorum; nodes of two lineages do not talk.
//
// # Coming back
//
// [Restore] makes a node of a backup, and [Recover] lets one go on that has lost its quorum for good: each writes a new
// history, of another lineage and with one voter, into a folder of the node's directory, which counts once it is whole and
// on the disk. A node that finds half of one does not start; it finishes what is whole. Recover keeps all entries of the
// log, also those of which nobody knows any more whether they were committed, and puts aside what the node had.
//
// # What is mended around raft
//
// hashicorp/raft 1.7.3, as it is, with these held off from outside, each by a test that fails without it where one could
// be made:
//   - raft#695, a heartbeat on the fast path raises the term under a leader's hands and two entries share index and term:
//     no fast path. TestHeartbeatFastPathDiverges shows two logs come apart in a schedule of a dozen steps.
//   - raft#696, a transfer of leadership that is interrupted while the target catches up refuses commands for ever:
//     everything is committed and nothing let in before raft's transfer begins; if it hangs all the same, the node halts.
//   - raft#503, #614, a disk that hangs or fails under a leader: the transport falls silent and another is elected, or
//     the node halts. A hung write is never reported as failed, for it may yet land.
//   - A term that cannot be written makes raft panic: it is told otherwise while the node halts.
//   - raft#612, a pipeline that never resumes: no pipelining.
//   - raft#697, snapshots sent in an endless loop to a node whose log reaches past them: a leader's question about the
//     snapshot's own index is answered before raft sees it. TestLostAnswerAfterASnapshot gets there by one lost message.
//     TrailingLogs keeps far more entries than a leader can append without a quorum before its lease ends, besides.
//   - VerifyLeader counts nonvoters, and waits for ever for a member that was removed meanwhile: the voters' answers are
//     counted here, and raft's count is waited for no longer than an election takes.
//   - NotifyCh stops raft while nobody reads: [Store.Lead] listens to LeaderCh, which drops, and takes each signal for an
//     end and perhaps a beginning.
//
// # When it stops
//
// A node halts, rather than go on, when the state cannot be written, the Machine panics, a log write fails, its state
// differs from a snapshot's, or raft is wedged. [Store.Done] is closed, [Store.Err] says why, and proposals under way end
// as [ErrAmbiguous]. Start it again once the reason is gone; it will rebuild its state.
//
// # Trade-offs
//
//   - Without the fast path a follower answers heartbeats between its disk writes. Where one takes longer than the lease
//     (150 ms) on both followers at once, the leader steps down though nothing is wrong. Raise [Timing] on slow disks, on
//     all nodes together.
//   - Without pipelining each follower is sent one message at a time, up to 512 entries: a round trip more for a command
//     that comes while one is under way, nothing for throughput.
//   - One fsync on the leader and one on the slower of the faster two nodes stand in every commit; commands that wait
//     together share them.
//   - Every start reads the whole log once, about a second for each 400 MB.
//   - A start after a crash reads the newest snapshot about four times (raft's checksum and ours, before and while it is
//     restored) and replays at most SnapshotThreshold entries and some; a start in order replays nothing but skips
//     through them.
//   - A snapshot is the whole state, also when little has changed since the last.
//   - Records are on fewer disks than acknowledged commands are while a node fetches them: whoever takes nodes out of a
//     cluster looks at Status.RecordsMissing of one that stays.
//   - A long View holds back the growth of the state file's memory map once it is over 256 MiB, and a restore at any
//     size; readers are to be short.
//   - A new cluster is made once all of its first members are up, not a quorum of them.
//   - A voter that lost its disk rejoins by itself and votes once it has caught up. What it may have voted in an election
//     that was under way in that very moment, in a term above that of the leader it caught up with, it does not know. Where
//     that matters, remove it and let it join anew.
package raftstore
