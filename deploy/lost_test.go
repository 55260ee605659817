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
hallpass audit export --out %s
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
func nothingLost(t *testing.T, c *cluster, l *writing) {
	all := l.close(t)
	t.Logf("%d requests were acknowledged", len(all))
	var logs [][]byte
	for _, n := range nodes() {
		c.serves(t, n) // so its own state has all of it
		client := c.client(t, "bob", n)
		if err := ledger.Check(t.Context(), client, all); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		log, err := ledger.ReadLog(t.Context(), client)
		if err != nil {
			t.Fatalf("the log of %s: %v", n, err)
		}
		issued, err := ledger.CheckLog(log, all, "ticket 4711") // of the README's blocks
		if err != nil {
			t.Errorf("the log of %s: %v", n, err)
		}
		if err := ledger.CheckIssuances(t.Context(), client, issued); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		logs = append(logs, log)
	}
	// One history: of any two logs, the shorter is how the longer begins; and one of them verifies.
	logs = append(logs, c.export(t, "n1", "audit-after", "audit-before"))
	slices.SortFunc(logs, func(a, b []byte) int { return len(a) - len(b) })
	for i := range len(logs) - 1 {
		if !bytes.HasPrefix(logs[i+1], logs[i]) {
			t.Error("two nodes tell two histories")
		}
	}
}
