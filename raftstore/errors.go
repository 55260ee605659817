package raftstore

import "errors"

// An error of Propose that does not wrap ErrAmbiguous means: nothing was proposed, and nothing will commit.
var (
	// ErrNotLeader is returned when another node leads. Leader says whom to ask instead.
	ErrNotLeader = errors.New("raftstore: this node does not lead")

	// ErrNoQuorum is returned when no leader is known here: fewer than a quorum can be reached, or an election is under
	// way.
	ErrNoQuorum = errors.New("raftstore: no leader is known")

	// ErrAmbiguous is returned when the command may or may not commit, now or later. The caller MUST NOT act on either
	// outcome before it has read back, after a Linearize that succeeded at the node that leads then.
	ErrAmbiguous = errors.New("raftstore: the outcome is not known: the command may still commit")

	// ErrBusy is returned when the log takes no more commands for now.
	ErrBusy = errors.New("raftstore: the log is not keeping up")

	// ErrTransfer is returned when leadership was not handed over. This node may lead on.
	ErrTransfer = errors.New("raftstore: leadership was not handed over")

	// ErrTooLarge is returned when a command is over Config.MaxCommand bytes.
	ErrTooLarge = errors.New("raftstore: command too large")

	// ErrClosed is returned when the store was closed.
	ErrClosed = errors.New("raftstore: closed")

	// ErrHalted is returned when the node stopped itself because going on would be wrong; Err says why.
	ErrHalted = errors.New("raftstore: the node has halted")

	// ErrDamagedSnapshot is returned when a snapshot is not byte for byte what was written, or its state is not the state
	// that was hashed.
	ErrDamagedSnapshot = errors.New("raftstore: damaged snapshot")

	// ErrDamagedBackup is returned when a backup is not byte for byte what was written, or does not agree with itself.
	ErrDamagedBackup = errors.New("raftstore: damaged backup")

	// ErrDamagedLog is returned by Open when the log is not byte for byte what was written.
	ErrDamagedLog = errors.New("raftstore: damaged log")

	// ErrRecordsMissing is returned when a record is neither here nor to be had from another node now. A node that was sent
	// a snapshot fetches the records before it in the background; Status says how many it still lacks.
	ErrRecordsMissing = errors.New("raftstore: records are missing here")

	// ErrWrongNode is returned by Open when Dir belongs to another node or another membership, or to a log of another
	// format.
	ErrWrongNode = errors.New("raftstore: the data is another node's")

	// ErrNotEmpty is returned by Restore and Recover when what they would write to is not theirs to write to.
	ErrNotEmpty = errors.New("raftstore: the directory is not empty")

	// ErrUnfinished is returned by Open when a restore or a recovery in Dir has not come to its end.
	ErrUnfinished = errors.New("raftstore: the data is not whole")

	// ErrRefused is returned when another node does not let this one in; its reason follows.
	ErrRefused = errors.New("raftstore: not let in")

	// ErrUnknownPeer is returned when a connection's other end does not hold the key that the membership pins.
	ErrUnknownPeer = errors.New("raftstore: the peer's key is not the pinned one")
)
