package raftstore

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hallpass/hallpass/internal/loopback"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kv is a Machine of text commands: "set KEY VALUE" gives the value before, "grow KEY" makes it longer by one, "note TEXT"
// appends a record, "fail" panics.
type kv struct{}

const (
	kvCount = "#"  // how many records there are, in decimal
	kvSum   = "##" // followed by a number: that record's hash
)

func (kv) Apply(tx Tx, _ uint64, data []byte) any {
	word := strings.SplitN(string(data), " ", 3)
	switch {
	case word[0] == "set" && len(word) == 3:
		before := bytes.Clone(tx.Get([]byte(word[1])))
		tx.Put([]byte(word[1]), []byte(word[2]))
		return before
	case word[0] == "grow" && len(word) == 2:
		tx.Put([]byte(word[1]), append(bytes.Clone(tx.Get([]byte(word[1]))), '+'))
		return nil
	case word[0] == "note":
		n, _ := strconv.Atoi(string(tx.Get([]byte(kvCount)))) // none is 0
		sum := sha256.Sum256(data)
		if n > 0 && bytes.Equal(sum[:], tx.Get([]byte(kvSum+strconv.Itoa(n-1)))) {
			return []byte(strconv.Itoa(n - 1)) // repeated by who heard no answer
		}
		tx.Append(data)
		tx.Put([]byte(kvSum+strconv.Itoa(n)), sum[:])
		tx.Put([]byte(kvCount), []byte(strconv.Itoa(n+1)))
		return []byte(strconv.Itoa(n))
	case word[0] == "fail":
		panic("told to")
	}
	return []byte("refused")
}

func (kv) CheckRecords(r Reader, first uint64, records [][]byte) error {
	total, _ := strconv.Atoi(string(r.Get([]byte(kvCount))))
	if first%RecordChunk != 0 || uint64(len(records)) != min(RecordChunk, uint64(total)-first) {
		return fmt.Errorf("asked about %d records from %d on of %d", len(records), first, total)
	}
	for i, record := range records {
		sum := sha256.Sum256(record)
		if !bytes.Equal(sum[:], r.Get([]byte(kvSum+strconv.Itoa(int(first)+i)))) {
			return fmt.Errorf("record %d is %q", int(first)+i, record)
		}
	}
	return nil
}

// testTiming is patient, for a machine that is busy with other things.
func testTiming() Timing {
	return Timing{Heartbeat: 750 * time.Millisecond, Election: 750 * time.Millisecond, Lease: 750 * time.Millisecond}
}

const patience = 60 * time.Second

// cluster is real nodes on loopback, with TLS and files.
type cluster struct {
	t       testing.TB
	members []Member
	keys    map[string]ed25519.PrivateKey
	dirs    map[string]string
	nodes   map[string]*Store            // running ones
	adjust  func(id string, cfg *Config) // of every start

	revision uint64 // of members
}

// newCluster starts three nodes, and has the test run beside others, as it mostly waits.
func newCluster(t *testing.T, adjust func(id string, cfg *Config)) *cluster {
	t.Helper()
	t.Parallel()
	return startCluster(t, adjust)
}

func startCluster(t testing.TB, adjust func(id string, cfg *Config)) *cluster {
	t.Helper()
	c := &cluster{
		t: t, keys: map[string]ed25519.PrivateKey{}, dirs: map[string]string{}, nodes: map[string]*Store{}, adjust: adjust,
	}
	listeners := map[string]net.Listener{}
	for _, id := range []string{"n1", "n2", "n3"} {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		l := listen(t, "127.0.0.1:0")
		listeners[id] = l
		c.keys[id] = key
		c.dirs[id] = filepath.Join(t.TempDir(), id)
		c.members = append(c.members, Member{ID: id, Address: l.Addr().String(), Key: pub})
	}
	t.Cleanup(func() {
		for id, s := range c.nodes {
			if err := s.Close(); err != nil {
				t.Errorf("close %s: %v", id, err)
			}
		}
	})
	for _, m := range c.members {
		c.open(m.ID, listeners[m.ID])
	}
	return c
}

// listen takes an address; one that it is to choose stays the test's while nobody
// listens on it.
func listen(t testing.TB, address string) net.Listener {
	t.Helper()
	if address == "127.0.0.1:0" {
		kept, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kept.Release() }) // nothing is lost with it
		address = kept.Address()
	}
	var l net.Listener
	eventually(t, "listen on "+address, func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(t.Context(), "tcp", address)
		return err
	})
	return l
}

func (c *cluster) config(id string) Config {
	cfg := Config{
		ID: id, Dir: c.dirs[id], Key: c.keys[id], Members: c.members, MembersRevision: c.revision, Machine: kv{},
		Logger: testLogger(c.t, id), Timing: testTiming(),
	}
	if c.adjust != nil {
		c.adjust(id, &cfg)
	}
	return cfg
}

func (c *cluster) open(id string, l net.Listener) *Store {
	c.t.Helper()
	cfg := c.config(id)
	cfg.Listener = l
	s, err := Open(cfg)
	if err != nil {
		c.t.Fatalf("open %s: %v", id, err)
	}
	c.nodes[id] = s
	return s
}

func (c *cluster) address(id string) string {
	for _, m := range c.members {
		if m.ID == id {
			return m.Address
		}
	}
	return ""
}

func (c *cluster) start(id string) *Store {
	c.t.Helper()
	return c.open(id, listen(c.t, c.address(id)))
}

func (c *cluster) stop(id string) {
	c.t.Helper()
	if err := c.nodes[id].Close(); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
	delete(c.nodes, id)
}

func (c *cluster) kill(id string) {
	c.t.Helper()
	if err := c.nodes[id].Abort(); err != nil {
		c.t.Errorf("abort %s: %v", id, err)
	}
	delete(c.nodes, id)
}

// leader waits for one that can confirm that it leads.
func (c *cluster) leader() *Store {
	c.t.Helper()
	var found *Store
	eventually(c.t, "a leader", func() error {
		for _, s := range c.nodes {
			if !s.IsLeader() {
				continue
			}
			ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
			err := s.Linearize(ctx)
			cancel()
			if err == nil {
				found = s
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found
}

// followers are those who did not lead at the moment of the call.
func (c *cluster) followers() []*Store {
	leader := c.leader()
	var list []*Store
	for _, s := range c.nodes {
		if s != leader {
			list = append(list, s)
		}
	}
	return list
}

// propose gives the command to whoever leads until one accepts it. Commands given here are idempotent.
func (c *cluster) propose(format string, args ...any) (index uint64, result string) {
	c.t.Helper()
	command := fmt.Sprintf(format, args...)
	eventually(c.t, command, func() error {
		for _, s := range c.nodes {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			i, r, err := s.Propose(ctx, []byte(command))
			cancel()
			if err == nil {
				index = i
				if b, ok := r.([]byte); ok {
					result = string(b)
				}
				return nil
			}
		}
		return errors.New("nobody takes it")
	})
	return index, result
}

// await waits until the node has applied the index.
func await(t testing.TB, s *Store, index uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.Wait(ctx, index-1); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s *Store, key string) string {
	t.Helper()
	var value string
	err := s.View(func(r Reader, _ uint64) error {
		value = string(r.Get([]byte(key)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// agree waits until all nodes have applied the index, and compares their states.
func (c *cluster) agree(index uint64) {
	c.t.Helper()
	eventually(c.t, "all nodes at one index", func() error {
		hashes := map[string]string{}
		indexes := map[uint64]bool{}
		for id, s := range c.nodes {
			await(c.t, s, index)
			at, sum, err := s.StateHash()
			if err != nil {
				return err
			}
			indexes[at], hashes[fmt.Sprintf("%x", sum[:8])] = true, id
		}
		if len(indexes) > 1 {
			return fmt.Errorf("at %v", indexes)
		}
		if len(hashes) > 1 {
			c.t.Fatalf("the nodes have different states at %v: %v", indexes, hashes)
		}
		return nil
	})
}

// eventually polls until fn returns nil.
func eventually(t testing.TB, what string, fn func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still after %v: %v", what, patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// testLogger shows warnings and worse of a node in the test's output.
func testLogger(t testing.TB, id string) *slog.Logger {
	h := slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})
	return slog.New(h).With("node", id)
}
