package raftstore

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// corrupt changes a pair of one node's state behind the log's back.
func corrupt(t *testing.T, s *Store) {
	t.Helper()
	if _, err := s.state.update(func(tx *boltTx, at position) (position, error) {
		tx.Put([]byte("z"), []byte("flipped")) // which no command writes
		return at, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func comparing(t *testing.T) *cluster {
	return newCluster(t, func(_ string, cfg *Config) { cfg.StateCheck = 8 })
}

// A node whose state went wrong halts and says so, leader or not; the others go on.
func TestDivergedStateHalts(t *testing.T) {
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader %v", leads), func(t *testing.T) {
			c := comparing(t)
			c.propose("set a 1")
			sick := c.leader()
			if !leads {
				sick = c.followers()[0]
			}
			corrupt(t, sick)
			for range 20 {
				c.propose("set b 1")
			}
			select {
			case <-sick.Done():
			case <-time.After(patience):
				t.Fatal("the node does not halt")
			}
			if why := sick.Err().Error(); !strings.Contains(why, "this node's went wrong") {
				t.Errorf("it says %q", why)
			}
			c.stop(sick.cfg.ID)
			for range 20 {
				c.propose("set b 2")
			}
			for id, s := range c.nodes {
				if err := s.Err(); err != nil {
					t.Errorf("%s halted too: %v", id, err)
				}
			}
		})
	}
}

// Without a majority that agrees nobody halts, and those who differ are named.
func TestDivergedWithoutMajority(t *testing.T) {
	c := comparing(t)
	c.propose("set a 1")
	leader := c.leader()
	down := c.followers()[0].cfg.ID
	c.stop(down)
	sick := c.followers()[0]
	corrupt(t, sick)
	for range 20 {
		c.propose("set b 1")
	}
	eventually(t, "the two name each other", func() error {
		if a, b := leader.Status().Differing, sick.Status().Differing; !slices.Equal(a, []string{sick.cfg.ID}) ||
			!slices.Equal(b, []string{leader.cfg.ID}) {
			return fmt.Errorf("they name %v and %v", a, b)
		}
		return nil
	})
	if leader.Err() != nil || sick.Err() != nil {
		t.Errorf("one halted: %v, %v", leader.Err(), sick.Err())
	}
	c.start(down) // it makes its state anew, and a majority
	for range 20 {
		c.propose("set b 2")
	}
	select {
	case <-sick.Done():
	case <-time.After(patience):
		t.Fatal("the node does not halt when a third has come")
	}
}

// A member that answers with more than states are costs no more memory than they take.
func TestStatesAreSmall(t *testing.T) {
	for what, answer := range map[string]func(w io.Writer) error{
		"one that is large": func(w io.Writer) error {
			_, err := w.Write(binary.BigEndian.AppendUint32(nil, maxRecord))
			return err
		},
		"many": func(w io.Writer) error {
			one := append(binary.BigEndian.AppendUint32(nil, stateSize), make([]byte, stateSize)...)
			for {
				if _, err := w.Write(one); err != nil {
					return err
				}
			}
		},
	} {
		near, far := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- answer(far) }()
		stream := &recordStream{Conn: near, in: bufio.NewReader(near)}
		list, err := stream.read(statesKept, statesKept*stateSize)
		if err == nil && len(list) > statesKept || err != nil && what == "many" || err == nil && what != "many" {
			t.Errorf("%s: %d, %v", what, len(list), err)
		}
		_ = near.Close()
		if err := <-ended; what == "many" && err == nil {
			t.Errorf("%s: it could send them all", what)
		}
	}
}
