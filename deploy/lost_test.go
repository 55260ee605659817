//go:build compose

package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hallpass/hallpass/internal/ledger"
)

// export writes a node's audit log to a folder of that name and verifies it against the manifest
// and older checkpoints. It gives the entries' file.
func (c *cluster) export(t *testing.T, node, name string, older ...string) []byte {
	t.Helper()
	script := fmt.Sprintf(`export PATH="$PWD/bin:$PATH" HALLPASS_SERVER=%s HALLPASS_IDENTITY=.hallpass/bob
hallpass audit export --out %s --require 2
hallpass audit verify %[2]s --manifest .hallpass/manifest.json`, c.url(node), name)
	for _, o := range older {
		script += " --older " + o + "/checkpoint"
	}
	c.typed(t, script)
	entries, err := os.ReadFile(filepath.Join(c.dir, name, "entries.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// nothingLost checks every acknowledged write in every node's own state, and the log.
func nothingLost(t *testing.T, c *cluster, l *writing, before []ledger.Entry) []ledger.Entry {
	all := append(before, l.close(t)...)
	t.Logf("%d requests were acknowledged", len(all))
	logs := make([][]byte, 0, len(c.members)+1)
	for _, n := range c.members {
		c.serves(t, n) // so its own state has all of it
		if err := ledger.Check(t.Context(), c.client(t, "bob", n), all); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		logs = append(logs, c.oneLog(t, n, all))
	}
	oneHistory(t, append(logs, c.export(t, "n1", "audit-after", "audit-before"))) // of which this one verifies
	return all
}

// oneHistory checks that of any two logs, the shorter is how the longer begins.
func oneHistory(t *testing.T, logs [][]byte) {
	t.Helper()
	slices.SortFunc(logs, func(a, b []byte) int { return len(a) - len(b) })
	for i := range len(logs) - 1 {
		if !bytes.HasPrefix(logs[i+1], logs[i]) {
			t.Error("two nodes tell two histories")
		}
	}
}

// oneLog checks a node's log, and that its records have each certificate of the log once.
func (c *cluster) oneLog(t *testing.T, node string, all []ledger.Entry) []byte {
	t.Helper()
	log := c.log(t, node)
	issued, err := ledger.CheckLog(log, all, "ticket 4711") // of the pages' blocks
	if err != nil {
		t.Errorf("the log of %s: %v", node, err)
	}
	if err := ledger.CheckIssuances(t.Context(), c.client(t, "bob", node), issued); err != nil {
		t.Errorf("%s: %v", node, err)
	}
	return log
}

// log is a node's own.
func (c *cluster) log(t *testing.T, node string) []byte {
	t.Helper()
	log, err := ledger.ReadLog(t.Context(), c.client(t, "bob", node))
	if err != nil {
		t.Fatalf("the log of %s: %v", node, err)
	}
	return log
}
