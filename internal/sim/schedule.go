package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// A fault is one thing that goes wrong for a while. What goes wrong, when, where and for how long is fixed by the seed
// before the run begins. "The leader" is whoever leads when the fault begins.
type fault struct {
	at, lasts time.Duration // from the beginning of the faults
	kind      kind
	target    target
	amount    float64 // how much of it, from 0 to 1
	choice    int     // which variety of the kind
}

func (f fault) String() string {
	return fmt.Sprintf("at %v for %v: %s of %s, variety %d, amount %.2f",
		f.at.Round(time.Millisecond), f.lasts.Round(time.Millisecond), f.kind, f.target, f.choice, f.amount)
}

type kind string

const (
	crash      kind = "crash"       // SIGKILL, and a start when it is over
	blackout   kind = "blackout"    // SIGKILL of all at once
	restart    kind = "restart"     // SIGTERM, and a start
	isolation  kind = "isolation"   // a node is cut off: from nodes, or from all; both ways, or one
	brokenLink kind = "broken link" // two nodes do not hear each other, or one not the other
	latency    kind = "latency"     // messages from and to a node take long
	storm      kind = "storm"       // messages between nodes are lost, doubled and late
	slowDisk   kind = "slow disk"   // writes take long, or longer than a leader may take
	fullDisk   kind = "full disk"   // writes fail
	wrongClock kind = "wrong clock" // it jumps, and jumps back
	removal    kind = "removal"     // a voter is removed and, when it is over, added and promoted
	snapshots  kind = "snapshots"   // nodes take snapshots, and perhaps crash right after
	handOver   kind = "hand-over"   // the leader hands over
)

func kinds() []kind {
	return []kind{
		crash, blackout, restart, isolation, brokenLink, latency, storm, slowDisk, fullDisk, wrongClock, removal, snapshots,
		handOver, crash, isolation, wrongClock, removal, // these more often
	}
}

// target is a node, by its ID or by what it does at the time.
type target string

const (
	theLeader  target = "the leader"
	aFollower  target = "a follower"
	settleTime        = 15 * time.Second // of calm before the first fault
)

// plan makes the faults of a run, in order. Every kind comes up before any comes up again.
func plan(seed uint64, length time.Duration) []fault {
	rng := newRand(seed, "faults")
	var faults []fault
	var deck []kind
	for at := settleTime; at < length; {
		if len(deck) == 0 {
			deck = kinds()
			rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := fault{
			at: at, kind: deck[0], target: somewhere(rng), amount: rng.Float64(), choice: rng.IntN(12),
			lasts: howLong(rng),
		}
		deck = deck[1:]
		if f.kind == blackout {
			f.lasts = min(f.lasts, 5*time.Second)
		}
		f.lasts = min(f.lasts, length-at)
		faults = append(faults, f)
		at += between(rng, time.Second, 15*time.Second)
		if rng.IntN(10) < 6 { // the others overlap
			at += f.lasts
		}
	}
	slices.SortStableFunc(faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return faults
}

func somewhere(rng *rand.Rand) target {
	all := []target{theLeader, theLeader, aFollower}
	for _, id := range nodeIDs() {
		all = append(all, target(id))
	}
	return all[rng.IntN(len(all))]
}

// howLong is most often short, and at times long enough for a node to miss more than the others' logs keep.
func howLong(rng *rand.Rand) time.Duration {
	if rng.IntN(4) == 0 {
		return between(rng, 30*time.Second, 100*time.Second)
	}
	return between(rng, 100*time.Millisecond, 12*time.Second)
}

func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}
