package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// Nodes compare their states at every index that Config.StateCheck divides. Who has another state than a majority of the
// voters, all of which agree on theirs, halts. It takes a majority's word, and not the leader's: a leader that went wrong
// would otherwise take all right nodes down, and so could a single stolen one. Without a majority that agrees nobody can
// say who is wrong, so nobody halts; Status names those who differ.
//
// The hashes are asked for on a stream for records, as records that are numbered statesAsked and have 40 bytes: index 8,
// hash 32, big-endian. A node of a version that does not know them answers that it has no such records, and is not
// counted.
const (
	statesAsked  = math.MaxUint64
	statesKept   = 64
	stateSize    = 8 + sha256.Size
	statesPeriod = 2 * time.Second
)

// checkpoint is the hash of a state right after the entry of that index.
type checkpoint struct {
	index uint64
	hash  [sha256.Size]byte
}

func (c checkpoint) encode() []byte {
	return append(binary.BigEndian.AppendUint64(nil, c.index), c.hash[:]...)
}

func decodeCheckpoint(b []byte) (c checkpoint, err error) {
	if len(b) != stateSize {
		return c, fmt.Errorf("raftstore: a checkpoint of %d bytes", len(b))
	}
	c.index = binary.BigEndian.Uint64(b)
	copy(c.hash[:], b[8:])
	return c, nil
}

// checkpoints keeps the newest.
type checkpoints struct {
	mu     sync.Mutex
	list   []checkpoint // guarded by mu; oldest first
	differ []string     // guarded by mu; voters with another state, at the newest index that could be compared
}

func (c *checkpoints) add(more []checkpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, more...)
	c.list = slices.Delete(c.list, 0, max(0, len(c.list)-statesKept))
}

func (c *checkpoints) all() []checkpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

func (c *checkpoints) differing() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.differ)
}

// blame sets who differs, and reports whether that is news.
func (c *checkpoints) blame(who []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := !slices.Equal(c.differ, who)
	c.differ = who
	return news
}

// compareStates runs until the node stops.
func (s *Store) compareStates() {
	tick := time.NewTicker(statesPeriod)
	defer tick.Stop()
	settled := uint64(0) // at this index all voters were heard
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		own := s.checkpoints.all()
		if len(own) == 0 || own[len(own)-1].index == settled {
			continue
		}
		votes := voters(s.configuration())
		told := map[string][]checkpoint{}
		for _, id := range s.peers() {
			if list, err := s.statesOf(id); err == nil && votes[id] {
				told[id] = list
			}
		}
		at, heard := s.judge(own, told, len(votes))
		if heard == len(votes) || heard == len(votes)-1 && votes[s.cfg.ID] {
			settled = at
		}
	}
}

// statesOf asks another node for its checkpoints.
func (s *Store) statesOf(id string) (list []checkpoint, err error) {
	stream, err := s.askFor(s.ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }() // nothing is held back
	if err := stream.ask(statesAsked, statesKept); err != nil {
		return nil, err
	}
	// A member that answers with more, every two seconds, would fill this node's memory.
	encoded, err := stream.read(statesKept, statesKept*stateSize)
	if err != nil {
		return nil, err
	}
	for _, b := range encoded {
		c, err := decodeCheckpoint(b)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// judge compares at every index of which others have a hash, and returns the newest of them and how many were heard of it.
func (s *Store) judge(own []checkpoint, told map[string][]checkpoint, voters int) (newest uint64, heard int) {
	for _, mine := range own {
		v := compareAt(mine, told)
		if v.heard == 0 {
			continue
		}
		newest, heard = mine.index, v.heard
		for hash, n := range v.others {
			if n > voters/2 {
				s.halt(fmt.Errorf("at index %d this node's state is %x, and %s, a majority, have %x: this node's went wrong. "+
					"do not start it again on its data: remove it from the cluster, empty its data directory and let it join anew",
					mine.index, mine.hash[:8], strings.Join(v.differ, " and "), hash[:8]))
				return newest, heard
			}
		}
		if s.checkpoints.blame(v.differ) && len(v.differ) > 0 {
			s.logger.Error("nodes have different states; without a majority against it this node goes on",
				"index", mine.index, "differ", strings.Join(v.differ, " "))
		}
	}
	return newest, heard
}

// verdict is what was told about one index.
type verdict struct {
	heard  int                       // who was heard of it
	others map[[sha256.Size]byte]int // how many have each hash that is not this node's
	differ []string                  // who they are
}

func compareAt(mine checkpoint, told map[string][]checkpoint) verdict {
	v := verdict{others: map[[sha256.Size]byte]int{}}
	for id, list := range told {
		i := slices.IndexFunc(list, func(c checkpoint) bool { return c.index == mine.index })
		if i < 0 {
			continue
		}
		v.heard++
		if list[i].hash != mine.hash {
			v.others[list[i].hash]++
			v.differ = append(v.differ, id)
		}
	}
	slices.Sort(v.differ)
	return v
}
