package sim

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// counters is what happens in a run.
type counters struct {
	virtual, elections, crashes, landed, torn, restarts, partitions, oneWay, dropped, duplicated, reordered atomic.Int64
	diskFaults, clockJumps, snapshots, installs, memberships, calls, commands                               atomic.Int64
}

// Counts is what happened in a run, or in several.
type Counts struct {
	Runs        int64
	Virtual     time.Duration
	Elections   int64
	Crashes     int64 // of one node each
	Landed      int64 // writes that a crash found under way, and that are on the disk
	Torn        int64 // writes that a crash found under way, and that are not
	Restarts    int64 // in order
	Partitions  int64
	OneWay      int64 // of the partitions
	Dropped     int64 // messages between nodes, besides those that a partition keeps
	Duplicated  int64
	Reordered   int64
	DiskFaults  int64
	ClockJumps  int64
	Snapshots   int64 // taken at bad moments
	Installs    int64 // snapshots that a node was sent
	Memberships int64 // changes
	Calls       int64
	Commands    int64 // accepted, committed and in the audit log
}

func (c *counters) read() Counts {
	return Counts{
		Runs: 1, Virtual: time.Duration(c.virtual.Load()), Elections: c.elections.Load(), Crashes: c.crashes.Load(),
		Landed: c.landed.Load(), Torn: c.torn.Load(), Restarts: c.restarts.Load(), Partitions: c.partitions.Load(),
		OneWay: c.oneWay.Load(), Dropped: c.dropped.Load(), Duplicated: c.duplicated.Load(), Reordered: c.reordered.Load(),
		DiskFaults: c.diskFaults.Load(), ClockJumps: c.clockJumps.Load(), Snapshots: c.snapshots.Load(),
		Installs: c.installs.Load(), Memberships: c.memberships.Load(), Calls: c.calls.Load(), Commands: c.commands.Load(),
	}
}

type count struct {
	name  string
	value *int64
}

func (c *Counts) all() []count {
	return []count{
		{"runs", &c.Runs},
		{"elections", &c.Elections},
		{"crashes", &c.Crashes},
		{"writes landed in a crash", &c.Landed},
		{"writes lost in a crash", &c.Torn},
		{"restarts", &c.Restarts},
		{"partitions", &c.Partitions},
		{"of them one-way", &c.OneWay},
		{"messages dropped", &c.Dropped},
		{"duplicated", &c.Duplicated},
		{"reordered", &c.Reordered},
		{"disk faults", &c.DiskFaults},
		{"clock jumps", &c.ClockJumps},
		{"snapshots", &c.Snapshots},
		{"snapshot installs", &c.Installs},
		{"membership changes", &c.Memberships},
		{"calls", &c.Calls},
		{"commands committed", &c.Commands},
	}
}

// Add adds those of another run.
func (c *Counts) Add(o Counts) {
	c.Virtual += o.Virtual
	theirs := o.all()
	for i, n := range c.all() {
		*n.value += *theirs[i].value
	}
}

// Missing names what never happened, which would make the rest mean little.
func (c *Counts) Missing() (names []string) {
	for _, n := range c.all() {
		if *n.value == 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// String is one line.
func (c *Counts) String() string {
	parts := []string{fmt.Sprintf("%.2f virtual hours", c.Virtual.Hours())}
	for _, n := range c.all() {
		parts = append(parts, fmt.Sprintf("%d %s", *n.value, n.name))
	}
	return strings.Join(parts, ", ")
}
