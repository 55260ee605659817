package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// anchors sends a head as a service's proxy does.
func (c *cluster) anchors(t *testing.T, at *running, who string, in api.AnchorInput) (status int, out api.Anchored) {
	t.Helper()
	if in.SentMS == 0 {
		in.SentMS = time.Now().UnixMilli()
	}
	body, err := json.Marshal(in)
	must(t, err)
	status, _, answer := post(t, c.raw(who), at.url()+pathAnchors, string(body))
	if status == http.StatusOK {
		must(t, json.Unmarshal(answer, &out))
	}
	return status, out
}

// headOf is a head whose root says how long it is.
func headOf(log string, size int64) api.AnchorInput {
	return api.AnchorInput{Log: strings.Repeat(log, 32), Size: size, Root: fmt.Sprintf("%064x", size)}
}

// anchorEntries are the entries of the audit log that anchor something.
func (c *cluster) anchorEntries(t *testing.T) (all []audit.Entry) {
	t.Helper()
	run, err := c.as("user/ann").AuditEntries(t.Context(), 0, 1000)
	must(t, err)
	for _, body := range run.Entries {
		e, err := audit.ParseEntry(body)
		must(t, err)
		if e.Kind == "access.anchor" {
			all = append(all, e)
		}
	}
	return all
}

// TestAnchors: what a proxy tells any node is in the audit log when it is answered, and
// nothing that a log cannot have become is, but for the alarm.
func TestAnchors(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for i, r := range c.live() {
		in := headOf("a", int64(i+1))
		status, out := c.anchors(t, r, "service/payments", in)
		if status != http.StatusOK || out.Log != in.Log || out.Size != in.Size || out.Root != in.Root {
			t.Fatalf("%s: %d %+v", r.ID(), status, out)
		}
		all := c.anchorEntries(t)
		if last := all[len(all)-1]; len(all) != i+1 || last.Index != out.Entry || last.Actor != "" || !strings.Contains(string(last.Details), in.Root) ||
			!strings.Contains(string(last.Details), `"by":"spiffe://acme.test/service/payments"`) {
			t.Errorf("%s: %+v", r.ID(), last)
		}
	}
	in := headOf("a", 3)
	in.Size, in.Root = 0, ""
	in.Settings = &api.ProxySettingsInput{SHA256: strings.Repeat("c", 64), Mode: "observe", UntilMS: time.Now().UnixMilli(), Open: []string{"allow GET /health"}}
	if status, out := c.anchors(t, c.follower(), "service/payments", in); status != http.StatusOK {
		t.Errorf("settings: %d %+v", status, out)
	}
	all := c.anchorEntries(t)
	if last := string(all[len(all)-1].Details); !strings.Contains(last, `"mode":"observe"`) || !strings.Contains(last, "allow GET /health") {
		t.Error(last)
	}
	if f := finding(c.leader().Health(), "access logs"); f.Status != statusOK {
		t.Errorf("%+v", f)
	}
}

// TestAnchorsOfAnotherAreRefused: a stolen service identity anchors nothing for
// another service, nor does a person's, and what was tried is told by every node.
func TestAnchorsOfAnotherAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.follower()
	if status, _ := c.anchors(t, r, "service/payments", headOf("a", 5)); status != http.StatusOK {
		t.Fatal(status)
	}
	for name, try := range map[string]struct {
		who    string
		in     api.AnchorInput
		status int
	}{
		"a person":              {"user/alice", headOf("b", 5), http.StatusForbidden},
		"a node":                {"node/n1", headOf("b", 5), http.StatusForbidden},
		"no root":               {"service/payments", api.AnchorInput{Log: strings.Repeat("b", 32), Size: 3, Root: "x"}, http.StatusUnprocessableEntity},
		"nothing":               {"service/payments", api.AnchorInput{Log: strings.Repeat("b", 32)}, http.StatusUnprocessableEntity},
		"another service's log": {"service/ledger", headOf("a", 6), http.StatusConflict},
		"a log that shrank":     {"service/payments", headOf("a", 4), http.StatusConflict},
	} {
		if status, out := c.anchors(t, r, try.who, try.in); status != try.status {
			t.Errorf("%s: %d %+v, want %d", name, status, out, try.status)
		}
	}
	for _, r := range c.live() {
		c.until("node "+r.ID()+" tells", func() bool {
			f := finding(r.Health(), "access logs")
			return f.Status == statusWarn && strings.HasPrefix(f.Detail, "2 are not what was anchored") &&
				strings.Contains(f.Detail, "spiffe://acme.test/service/ledger anchored log") && strings.Contains(f.Detail, "shrank from 5 lines")
		})
		if !r.Health().Ready {
			t.Errorf("%s is out of use for what a thief did", r.ID())
		}
	}
	if status, out := c.anchors(t, r, "service/payments", headOf("a", 7)); status != http.StatusOK || out.Size != 7 {
		t.Errorf("the true log goes on: %d %+v", status, out)
	}
}

// TestAnchorsAreOneEntryASecond: many proxies at once are few entries.
func TestAnchorsAreOneEntryASecond(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	began := time.Now()
	const logs = "0123456789abcdef"
	var wg sync.WaitGroup
	for round := range int64(2) {
		for i := range logs {
			wg.Go(func() {
				if status, _ := c.anchors(t, c.leader(), "service/payments", headOf(logs[i:i+1], round+1)); status != http.StatusOK {
					t.Errorf("log %c: %d", logs[i], status)
				}
			})
		}
		wg.Wait()
	}
	most := int(time.Since(began)/anchorEvery) + 1
	if n := len(c.anchorEntries(t)); n > most || n < 2 {
		t.Errorf("%d entries in %s", n, time.Since(began))
	}
}

// TestAnchorsWaitForTheirVersion: a cluster in the middle of an upgrade says so, and
// writes nothing that an older node could not read.
func TestAnchorsWaitForTheirVersion(t *testing.T) {
	n := new(node)
	n.version.Store(anchorsSince - 1)
	_, err := backend{n}.AnchorAccess(t.Context(), api.Call{}, headOf("a", 1))
	if !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
