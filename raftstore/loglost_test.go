package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLostLogIsRefused takes the log from beside a snapshot: a node that went on would vote twice in a term.
func TestLostLogIsRefused(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"missing":  os.Remove,
		"no bytes": func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, nil)
			index, _ := c.propose("set a 1")
			s := c.followers()[0]
			id := s.cfg.ID
			await(t, s, index)
			if err := s.Snapshot(); err != nil {
				t.Fatal(err)
			}
			c.kill(id)
			path := filepath.Join(c.dirs[id], logFile)
			if err := lose(path); err != nil {
				t.Fatal(err)
			}
			for range 2 { // nor is it believed the second time
				cfg := c.config(id)
				cfg.Listener = listen(t, c.address(id))
				again, err := Open(cfg)
				if err == nil {
					t.Fatal(errors.Join(errors.New("a node that has lost its log starts"), again.Close()))
				}
				if !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), path+" is missing or empty") {
					t.Errorf("refused with %v", err)
				}
			}
		})
	}
}
