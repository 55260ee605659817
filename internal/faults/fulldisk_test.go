//go:build faults && linux

package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ownMounts is set in a process whose mounts nobody else sees, and which go with it.
const ownMounts = "FAULTS_OWN_MOUNTS"

const (
	diskSize = 64 << 20
	noSpace  = "no space left on device"
)

// TestFullDisk fills a node's disk, then all of them, while writers write: a node whose disk is full stops and says why,
// the others go on, nothing that was acknowledged is lost, and with room again it starts as if nothing had been.
func TestFullDisk(t *testing.T) {
	if os.Getenv(ownMounts) == "" {
		inOwnMounts(t)
		return
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{"bolt", "wal"} {
		t.Run(log, func(t *testing.T) { fullDisk(t, log) })
	}
}

// inOwnMounts runs the test in a process that may mount what it likes.
func inOwnMounts(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*bearable)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ownMounts+"=yes", builtIn+"="+filepath.Dir(built.plain))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if errors.Is(err, syscall.EPERM) {
		t.Fatalf("a small disk is mounted to be filled, which this user may not: run it as root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func fullDisk(t *testing.T, log string) {
	cluster := newCluster(t, built.faulty, log)
	for _, n := range cluster.nodes {
		if err := errors.Join(os.MkdirAll(n.data(), 0o700), syscall.Mount("tmpfs", n.data(), "tmpfs", 0, fmt.Sprintf("size=%d", diskSize))); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(n.data(), syscall.MNT_DETACH) }) // the end of the process does it too
	}
	c := campaignOn(t, cluster, log, 1)
	c.written(1)

	sick := c.leader()
	fillDisk(t, sick[0])
	c.stop(1, sick[0])
	c.written(2) // the others go on
	sick[0].kill()
	if err := os.Truncate(sick[0].logFile(), 0); err != nil { // what it says from here on counts
		t.Fatal(err)
	}
	sick[0].start(t) // as long as there is no room it says so
	c.stop(1, sick[0])
	sick[0].kill()
	freeDisk(t, sick[0])
	c.startAll(sick)
	c.written(1)

	for _, n := range c.nodes {
		fillDisk(t, n)
	}
	c.stop(2, c.nodes...) // without a quorum the last one may have nothing to write
	for _, n := range c.nodes {
		n.kill()
		freeDisk(t, n)
	}
	c.startAll(c.nodes)
	c.written(1)
	c.nothingLost()
}

// written waits until the writers have written some rounds more.
func (c *campaign) written(rounds int) {
	c.t.Helper()
	before, err := c.writers.Rounds()
	for now := before; now < before+rounds; now, err = c.writers.Rounds() {
		if err != nil {
			c.t.Fatal(err)
		}
		select {
		case <-c.t.Context().Done():
			c.t.Fatal(c.t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func filler(n *node) string { return filepath.Join(n.data(), "filler") }

// fillDisk leaves no byte on a node's disk.
func fillDisk(t *testing.T, n *node) {
	t.Helper()
	file, err := os.OpenFile(filler(n), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		n, err := file.Write(make([]byte, size))
		if err == nil || n > 0 {
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(errors.Join(err, file.Close()))
		}
		size /= 2
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

func freeDisk(t *testing.T, n *node) {
	t.Helper()
	if err := os.Remove(filler(n)); err != nil {
		t.Fatal(err)
	}
}

// stop waits until so many of the nodes do not take part any more.
func (c *campaign) stop(many int, nodes ...*node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*bearable)
	defer cancel()
	for {
		stopped := 0
		for _, n := range nodes {
			if c.hasStopped(ctx, n) {
				stopped++
			}
		}
		if stopped >= many {
			return
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("%d of %d nodes stop with a full disk; want %d", stopped, len(nodes), many)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// hasStopped checks that a node that does not take part any more says why.
func (c *campaign) hasStopped(ctx context.Context, n *node) bool {
	c.t.Helper()
	_, ended := n.ended(0)
	said := n.said(30)
	switch {
	case strings.Contains(said, "panic:"):
		c.t.Fatalf("%s panics:\n%s", n.name, said)
	case ended && strings.Contains(said, noSpace):
		return true
	case ended:
		c.t.Fatalf("%s ends and does not say why:\n%s", n.name, said)
	}
	if text, err := findings(ctx, n); err == nil && strings.Contains(text, noSpace) {
		return true
	}
	fillDisk(c.t, n) // it may have made room, as when a snapshot goes
	return false
}

// findings is what a node says of itself.
func findings(ctx context.Context, n *node) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/readyz", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return string(text), errors.Join(err, resp.Body.Close())
}
