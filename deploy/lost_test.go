//go:build compose

package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
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
func nothingLost(t *testing.T, c *cluster, l *ledger) {
	all := l.close(t)
	t.Logf("%d requests were acknowledged", len(all))
	var logs [][]byte
	for _, n := range nodes() {
		c.serves(t, n) // so its own state has all of it
		client := c.client(t, "bob", n)
		for _, a := range all {
			if err := a.there(t.Context(), client); err != nil {
				t.Errorf("%s, of %s (%s): %v", n, a.id, a.reason, err)
			}
		}
		if err := cutEverywhere(t.Context(), client, all); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		log, err := ownLog(t.Context(), client)
		if err != nil {
			t.Fatalf("the log of %s: %v", n, err)
		}
		if err := once(log, all); err != nil {
			t.Errorf("the log of %s: %v", n, err)
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

// ownLog reads all audit entries out of a node's own state, one a line.
func ownLog(ctx context.Context, client *api.Client) (log []byte, err error) {
	for next := uint64(0); ; {
		page, err := client.AuditEntries(ctx, next, 1000, api.Stale())
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			log = append(append(log, e...), '\n')
		}
		if next = page.Next; next == 0 {
			return log, nil
		}
	}
}

// there checks that a node knows all of what was acknowledged.
func (a *acknowledged) there(ctx context.Context, client *api.Client) error {
	r, err := client.Request(ctx, a.id, api.Stale())
	if err != nil {
		return err
	}
	if r.State != api.RequestApproved || r.Reason != a.reason {
		return fmt.Errorf("the request is %s, for %q", r.State, r.Reason)
	}
	if !slices.ContainsFunc(r.Decisions, func(d api.Decision) bool {
		return d.Person == "bob" && d.Decision == "approve" && d.Hash == a.hash && d.Comment == a.reason
	}) || len(r.Decisions) != 1 {
		return fmt.Errorf("decisions %+v", r.Decisions)
	}
	g, err := client.Grant(ctx, a.id, api.Stale())
	if err != nil {
		return err
	}
	want := api.GrantActive
	if a.revoked {
		want = api.GrantRevoked
	}
	if g.State != want {
		return fmt.Errorf("the grant is %s, want %s", g.State, want)
	}
	if !slices.ContainsFunc(g.Issuances, func(i api.Issuance) bool { return i.Serial == a.serial }) {
		return fmt.Errorf("certificate %s is in somebody's hands and not in the record", a.serial)
	}
	return nil
}

// cutEverywhere checks that the feed names each revoked grant that still has a certificate.
func cutEverywhere(ctx context.Context, client *api.Client, all []*acknowledged) error {
	feed, err := client.Revocations(ctx, api.Stale())
	if err != nil {
		return err
	}
	named := make(map[string]bool)
	for _, e := range feed.Grants {
		named[e.ID] = true
	}
	for _, a := range all {
		if a.revoked && !named[a.id] && time.Now().Before(a.cert.Leaf.NotAfter) {
			err = errors.Join(err, fmt.Errorf("the feed lacks the revoked grant %s", a.id))
		}
	}
	return err
}

// once checks that the log holds each acknowledged write, none of them twice, and no two
// certificates under one serial number.
func once(log []byte, all []*acknowledged) error {
	type write struct{ kind, object string }
	writes := make(map[write]int)
	commands := make(map[string]bool) // by command id
	asked := make(map[string]bool)    // by reason, of which each round has its own
	minted := make(map[string]string) // serial → hash of the to-be-signed bytes
	var errs []error
	for line := range bytes.Lines(log) {
		e, err := audit.ParseEntry(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			return err
		}
		var d struct {
			Reason  string `json:"reason"`
			Serial  string `json:"serial"`
			TBSHash string `json:"tbs_hash"`
		}
		if err := json.Unmarshal(e.Details, &d); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
		if commands[e.CommandID] {
			errs = append(errs, fmt.Errorf("entry %d: command %s was applied before", e.Index, e.CommandID))
		}
		commands[e.CommandID] = true
		writes[write{e.Kind, e.Object}]++
		switch e.Kind {
		case "request.create":
			// A repeated call must not ask twice: the README's blocks have one reason, the writers none in common.
			if asked[d.Reason] && d.Reason != "ticket 4711" {
				errs = append(errs, fmt.Errorf("entry %d: %q was asked before", e.Index, d.Reason))
			}
			asked[d.Reason] = true
		case "grant.issue", "identity.issue":
			if tbs, ok := minted[d.Serial]; ok {
				errs = append(errs, fmt.Errorf("entry %d: serial %s was minted before, for %s, now for %s", e.Index, d.Serial, tbs, d.TBSHash))
			}
			minted[d.Serial] = d.TBSHash
		}
	}
	for _, a := range all {
		for kind, want := range map[string]int{"request.create": 1, "request.decide": 1, "grant.revoke": number(a.revoked)} {
			if got := writes[write{kind, a.id}]; got != want {
				errs = append(errs, fmt.Errorf("%s of %s (%s): %d entries, want %d", kind, a.id, a.reason, got, want))
			}
		}
		if minted[a.serial] != a.tbs {
			errs = append(errs, fmt.Errorf("certificate %s of %s is not the one that was committed", a.serial, a.id))
		}
	}
	return errors.Join(errs...)
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
