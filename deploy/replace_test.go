//go:build compose

package deploy

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

// replace destroys n3 while it leads, keys and all, and has n4 take its place, under writes. What n3
// signed opens nothing afterwards, neither a grant's certificate nor an identity.
func replace(t *testing.T, c *cluster, l *writing) {
	c.atDesk(t, operations(t, "transfer", "n2", "n3"))
	if led := c.leader(t, c.members...); led != "n3" {
		t.Fatalf("%s leads, and n3 was to", led)
	}
	l.grows(t)
	var issuers []api.Issuer
	for _, i := range c.cluster(t).Issuers {
		if i.Node == "n3" {
			issuers = append(issuers, i)
		}
	}
	stolen := l.signedBy(t, issuers)
	if status, err := c.call(t.Context(), stolen); status != http.StatusOK || err != nil {
		t.Fatalf("a grant that n3 signed, at the proxy: %d, %v", status, err)
	}
	const ask = "hallpass --identity svid request list"
	c.atDesk(t, operations(t, "service", "payments.acme.test", "localhost")+ask)

	c.wreck(t, "n3", "keys", "data")
	l.grows(t)
	c.define(t, "n4")
	c.join(t, "n4")
	c.members = []string{"n1", "n2"}
	c.remove(t, "n3")
	c.promote(t, "n4")

	now := c.cluster(t)
	for _, i := range issuers {
		if !slices.ContainsFunc(now.Issuers, func(j api.Issuer) bool { return j.ID == i.ID && j.Denied != nil }) {
			t.Errorf("the %s issuer of n3 is not denied", i.Role)
		}
	}
	if len(issuers) != 2 {
		t.Errorf("n3 had %d issuers, want two", len(issuers))
	}
	c.onTheFeed(t, issuers)
	c.refuses(t, stolen, "issuer_denied")
	c.atDesk(t, "if "+ask+"; then exit 1; else [ $? = 5 ]; fi")
	l.grows(t)
	c.access(t, l)
}

// cluster is what the cluster says of itself.
func (c *cluster) cluster(t *testing.T) api.Cluster {
	t.Helper()
	now, err := c.client(t, "bob", c.members...).Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// join adds a node on a new machine, by the page. It has no vote yet.
func (c *cluster) join(t *testing.T, node string) {
	t.Helper()
	c.rack(t, node)
	c.atNode(t, node, operations(t, "keys", "n1.acme.test:7443", node+":7000",
		"n1.acme.test:8443", node+":8443 --dns localhost --ip 127.0.0.1", "--dir keys", "--dir /keys", "n1", node))
	c.carry(t, node+"-keys:/node-request.json", "ca:/"+node+"/node-request.json")
	c.offline(t, operations(t, "add", "--dir ca", "--dir offline", "n4", node))
	c.carry(t, "ca:/offline/manifest.json", node+"-keys:/manifest.json")
	c.must(t, bearable, "deploy/compose.sh", "identities")
	c.atDesk(t, operations(t, "adopt", "manifest.json", ".hallpass/manifest.json"))
	// The image's file says no node, which comes from the environment, and validate leaves that out.
	c.atNode(t, node, operations(t, "start", "hallpass config validate server.yaml\n", ""))
	c.atDesk(t, operations(t, "join", "n4", node))
}

// promote gives it its vote.
func (c *cluster) promote(t *testing.T, node string) {
	t.Helper()
	c.atDesk(t, operations(t, "promote", "n4", node))
	c.members = append(c.members, node)
	c.serves(t, node)
}

// remove takes a node that is lost out, by the page.
func (c *cluster) remove(t *testing.T, node string) {
	t.Helper()
	c.atDesk(t, operations(t, "remove", "n3", node))
	c.drop(t, node)
}

// drop takes it out of the offline manifest too.
func (c *cluster) drop(t *testing.T, node string) {
	t.Helper()
	c.offline(t, operations(t, "drop", "--dir ca", "--dir offline", "n3", node))
	if now := c.cluster(t); slices.ContainsFunc(now.Nodes, func(n api.Node) bool { return n.ID == node }) {
		t.Errorf("%s was removed, and is there: %+v", node, now.Nodes)
	}
}

// onTheFeed waits until every node tells the proxies of these issuers.
func (c *cluster) onTheFeed(t *testing.T, issuers []api.Issuer) {
	t.Helper()
	for _, n := range c.members {
		client := c.client(t, "bob", n)
		within(t, bearable, n+" tells of the issuers", func() error {
			feed, err := client.Revocations(t.Context(), api.Stale())
			for _, i := range issuers {
				if !slices.ContainsFunc(feed.Issuers, func(e api.FeedEntry) bool { return e.ID == i.ID }) {
					err = errors.Join(err, fmt.Errorf("not of %s", i.ID))
				}
			}
			return err
		})
	}
}

// signedBy gives a certificate, in force and not revoked, that one of these issuers signed.
func (l *writing) signedBy(t *testing.T, issuers []api.Issuer) tls.Certificate {
	t.Helper()
	for _, e := range slices.Backward(l.Entries()) {
		for _, cert := range e.Certificates {
			sum := sha256.Sum256(cert.Certificate[1])
			if e.Live() && slices.ContainsFunc(issuers, func(i api.Issuer) bool { return i.ID == hex.EncodeToString(sum[:]) }) {
				return cert
			}
		}
	}
	t.Fatalf("none of the ledger's certificates is by %+v", issuers)
	return tls.Certificate{}
}

// refuses waits until the proxy turns a certificate away, which has time to live, and for this
// reason alone: a certificate that has ended, say, would show nothing.
func (c *cluster) refuses(t *testing.T, cert tls.Certificate, reason string) {
	t.Helper()
	c.turnsAway(t, cert)
	serial := cert.Leaf.SerialNumber.Text(16)
	within(t, bearable, "the proxy's record of the refusal", func() error {
		file := filepath.Join(c.dir, "access.jsonl")
		c.must(t, bearable, "docker", "cp", c.container(t, "proxy")+":/data/access.jsonl", file)
		records, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(records)), "\n")
		for _, line := range slices.Backward(lines) {
			var r struct{ Serial, Decision, Reason string }
			if err := json.Unmarshal([]byte(line), &r); err != nil || r.Serial != serial || r.Decision == "allow" {
				continue
			}
			if r.Reason != reason {
				t.Fatalf("refused as %s, want %s", r.Reason, reason)
			}
			return nil
		}
		return fmt.Errorf("none of serial %s", serial)
	})
}
