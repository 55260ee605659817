//go:build faults && linux

package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stallFor  = time.Second
	imageSize = 512 << 20
)

// What stops a file system from taking writes, and lets it again: linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// TestStalledDisk has real disks take no write for a second while writers write: one of them costs no leadership, and two
// or three nothing that was acknowledged.
func TestStalledDisk(t *testing.T) {
	if os.Getenv(ownMounts) == "" {
		inOwnMounts(t)
		return
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{"bolt", "wal"} {
		t.Run(log, func(t *testing.T) { stalledDisk(t, log) })
	}
}

func stalledDisk(t *testing.T, log string) {
	cluster := newCluster(t, built.plain, log)
	for _, n := range cluster.nodes {
		ownDisk(t, n)
	}
	c := campaignOn(t, cluster, log, 1)
	c.written(1)
	for _, leads := range []bool{true, false} {
		c.electsNobody(leads)
	}
	for range 3 {
		leader := c.leader()[0]
		var followers []*node
		for _, n := range c.nodes {
			if n != leader {
				followers = append(followers, n)
			}
		}
		for _, sick := range [][]*node{followers, {leader, followers[0]}, c.nodes} {
			stallDisks(t, sick...)
			c.written(1)
		}
	}
	c.nothingLost()
}

// electsNobody stalls one disk several times. On a machine that is busy an election may come of itself, so one round of
// several without one is enough; were it the disk, it would be all.
func (c *campaign) electsNobody(leads bool) {
	c.t.Helper()
	const rounds = 6
	elections := 0
	for range rounds {
		sick := c.leader()[0]
		for _, n := range c.nodes {
			if !leads && n != sick {
				sick = n
				break
			}
		}
		before, err := c.bob.Cluster(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		stallDisks(c.t, sick)
		c.written(1)
		after, err := c.bob.Cluster(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if after.Term != before.Term {
			elections++
		}
	}
	c.t.Logf("the disk of one node (leading: %v) took no write for %v, %d times: %d times with an election", leads, stallFor, rounds, elections)
	if elections == rounds {
		c.t.Errorf("a stall of %v of one disk (leading: %v) is an election each time", stallFor, leads)
	}
}

// ownDisk gives a node's data a file system of its own, which can be stopped without the others.
func ownDisk(t *testing.T, n *node) {
	t.Helper()
	image := filepath.Join(n.dir, "disk")
	file, err := os.OpenFile(image, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(file.Truncate(imageSize), file.Close())
	}
	if err = errors.Join(err, os.MkdirAll(n.data(), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, n.data()}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		n.kill()
		if err := syscall.Unmount(n.data(), 0); err != nil {
			t.Errorf("unmount %s: %v", n.data(), err)
		}
	})
	if err := os.Chmod(n.data(), 0o700); err != nil {
		t.Fatal(err)
	}
}

// stallDisks has the disks of nodes take no write for a while. Whoever writes waits, and is not told that it failed.
func stallDisks(t *testing.T, nodes ...*node) {
	t.Helper()
	thaw := func() error { return nil }
	for _, n := range nodes {
		dir, err := os.Open(n.data())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0); err != nil {
			t.Fatal(fmt.Errorf("freeze %s: %w", n.data(), err), thaw())
		}
		before := thaw
		thaw = func() error {
			return errors.Join(unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0), dir.Close(), before())
		}
	}
	time.Sleep(stallFor)
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
}
