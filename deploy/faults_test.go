//go:build compose

package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/ledger"
)

// bearable is how long anything that is not a whole start or stop may take on a loaded machine.
const bearable = time.Minute

// call reads an account through the proxy.
func (c *cluster) call(ctx context.Context, cert tls.Certificate) (status int, err error) {
	roots := x509.NewCertPool()
	bundle, err := os.ReadFile(filepath.Join(c.people, "alice", "identity-bundle.pem"))
	if err != nil || !roots.AppendCertsFromPEM(bundle) {
		return 0, fmt.Errorf("no identity roots: %w", err)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}},
		DisableKeepAlives: true,
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url("proxy")+"/accounts/42", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, errors.Join(err, resp.Body.Close())
}

// access checks at the proxy what the ledger says: who was let in still is, at once, and who was
// revoked is refused as soon as the proxy has heard of it.
func (c *cluster) access(t *testing.T, l *writing) {
	t.Helper()
	live, revoked := l.newest(t)
	if status, err := c.call(t.Context(), live); status != http.StatusOK || err != nil {
		t.Fatalf("a live grant at the proxy: %d, %v", status, err)
	}
	c.turnsAway(t, revoked)
}

// turnsAway waits until the proxy refuses a certificate.
func (c *cluster) turnsAway(t *testing.T, cert tls.Certificate) {
	t.Helper()
	within(t, bearable, "the certificate is refused", func() error {
		switch status, err := c.call(t.Context(), cert); {
		case status == http.StatusForbidden:
			return nil
		case status == 0 && strings.Contains(fmt.Sprint(err), "remote error: tls:"):
			return nil // refused in the handshake
		default:
			return fmt.Errorf("%d, %w", status, err)
		}
	})
}

// leader asks the given nodes who leads; it waits until one does.
func (c *cluster) leader(t *testing.T, of ...string) string {
	t.Helper()
	client := c.client(t, "bob", of...)
	var leader string
	within(t, bearable, "one of "+strings.Join(of, ", ")+" leads", func() error {
		answer, err := client.Cluster(t.Context())
		if err != nil {
			return err
		}
		leader = answer.Leader
		if !slices.Contains(of, leader) {
			return fmt.Errorf("%s names %q", answer.Node, leader)
		}
		return nil
	})
	return leader
}

// serves waits until a node answers by itself, as new as the others are now, and calls itself
// healthy.
func (c *cluster) serves(t *testing.T, node string) {
	t.Helper()
	others, err := c.client(t, "bob", c.others(node)...).Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, id := c.client(t, "bob", node), c.container(t, node)
	within(t, bearable, node+" serves again", func() error {
		answer, err := client.Cluster(t.Context(), api.Stale()) // of itself: the leader answers for all else
		if err != nil {
			return err
		}
		if answer.Node != node || answer.Index < others.Index {
			return fmt.Errorf("%s is at index %d, %s was at %d", answer.Node, answer.Index, others.Node, others.Index)
		}
		if out, err := c.run(t, bearable, "..", "docker", "exec", id, "/bin/hallpass", "health", "127.0.0.1:9900"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// others are the nodes but one.
func (c *cluster) others(node string) []string {
	return slices.DeleteFunc(slices.Clone(c.members), func(n string) bool { return n == node })
}

// killLeader kills the leader's container under writes; the other two go on, and it comes back.
func killLeader(t *testing.T, c *cluster, l *writing) {
	old := c.leader(t, c.members...)
	id := c.container(t, old)
	c.must(t, bearable, "docker", "kill", id)
	killed := time.Now()
	next := c.leader(t, c.others(old)...)
	l.grows(t)
	t.Logf("%s killed; %s leads, and both writers are rounds further after %s", old, next, time.Since(killed).Round(time.Millisecond))
	c.access(t, l)
	c.must(t, bearable, "docker", "start", id)
	c.serves(t, old)
	l.grows(t)
}

// cutOff takes the leader off its network under writes: it must not go on alone. Then it heals.
func cutOff(t *testing.T, c *cluster, l *writing) {
	old := c.leader(t, c.members...)
	id, network := c.container(t, old), c.project+"_control"
	c.must(t, bearable, "docker", "network", "disconnect", network, id)
	cut := time.Now()
	next := c.leader(t, c.others(old)...)
	l.grows(t)
	t.Logf("%s cut off; %s leads, and both writers are rounds further after %s", old, next, time.Since(cut).Round(time.Millisecond))
	// It is alive, and knows that it can serve nobody.
	within(t, bearable, "the node that is cut off is not ready", func() error {
		if out, err := c.run(t, bearable, "..", "docker", "exec", id, "/bin/hallpass", "health", "127.0.0.1:9900"); err == nil {
			return fmt.Errorf("%s is ready, alone: %s", old, out)
		}
		return nil
	})
	if state := c.must(t, bearable, "docker", "inspect", "-f", "{{.State.Running}} {{.RestartCount}}", id); state != "true 0" {
		t.Errorf("%s, cut off: running and restarts %q, want %q", old, state, "true 0")
	}
	c.access(t, l)
	c.must(t, bearable, "docker", "network", "connect", "--alias", old, network, id)
	c.serves(t, old)
	l.grows(t)
}

// rolling restarts each node as the page says, and the next when it is ready, under writers at full
// pace: none is told that a write failed. The leader's turn comes as it comes.
func rolling(t *testing.T, c *cluster, l *writing) []ledger.Entry {
	hurry := writeAtFullPace(t, c)
	hurry.grows(t)
	before, _ := hurry.Rounds()
	began, led := time.Now(), c.leader(t, c.members...)
	for _, n := range c.members {
		c.atNode(t, n, operations(t, "restart"))
		if status := c.endedWith(t, n); status != "0" {
			t.Errorf("%s, told to stop, exits with %s", n, status)
		}
		c.serves(t, n)
		hurry.grows(t)
		l.grows(t)
	}
	all := hurry.close(t)
	t.Logf("%s led; in %s of restarts %d rounds were written, and no write failed; the slowest took %s",
		led, time.Since(began).Round(time.Millisecond), len(all)-before, hurry.Slowest().Round(time.Millisecond))
	c.access(t, l)
	return all
}

// restart stops everything under writes and starts it on the volumes that were kept.
func restart(t *testing.T, c *cluster, l *writing) {
	volumes := c.there(t, "volume")
	c.must(t, 3*time.Minute, "make", "down")
	if left := c.there(t, "container"); len(left) > 0 {
		t.Errorf("make down leaves containers: %v", left)
	}
	if kept := c.there(t, "volume"); len(kept) == 0 || !slices.Equal(kept, volumes) {
		t.Errorf("make down keeps the volumes %v, of %v", kept, volumes)
	}
	if _, err := os.Stat(filepath.Join(c.folder(), "manifest.json")); err != nil {
		t.Errorf("make down keeps no identities: %v", err)
	}
	c.must(t, 4*time.Minute, "deploy/compose.sh", "up")
	l.grows(t)
	for _, n := range c.members {
		c.serves(t, n)
	}
	c.access(t, l)
}
