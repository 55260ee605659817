//go:build compose

package deploy

import (
	"crypto/tls"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/ledger"
)

// given is a grant that the proxy let in.
type given struct {
	id   string
	cert tls.Certificate
}

// give has alice ask, bob approve, and the proxy let her in, by the page. The grant's folder has its name.
func (c *cluster) give(t *testing.T, name string) given {
	t.Helper()
	use := operations(t, "use", "people/", ".hallpass/", "https://payments.acme.test:9443", c.url("proxy"), "--out grant", "--out "+name, "grant/", name+"/")
	wantAccount(t, c.atDesk(t, use))
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, name, "cert.pem"), filepath.Join(c.dir, name, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	segments := strings.Split(cert.Leaf.URIs[0].Path, "/")
	return given{segments[len(segments)-1], cert}
}

// revoke ends a grant, by the page.
func (c *cluster) revoke(t *testing.T, g given) {
	t.Helper()
	c.atDesk(t, "ID="+g.id+"\n"+operations(t, "revoke"))
}

// ended is what is left of a ledger after an epoch: all of it is there, and nothing is open.
func ended(all []ledger.Entry) []ledger.Entry {
	out := slices.Clone(all)
	for i := range out {
		out[i].Revoking = true
	}
	return out
}

// restore goes back to a snapshot after all nodes have lost their disks. What was revoked stays dead:
// what the snapshot has as revoked, what it has as live, and what came after it and was revoked, of
// which neither the cluster nor the proxy has ever heard. So is every other grant of before.
func restore(t *testing.T, c *cluster, all []ledger.Entry) {
	known, later, live := c.give(t, "revoked-before"), c.give(t, "revoked-later"), c.give(t, "live")
	c.revoke(t, known)
	c.refuses(t, known.cert, "revoked")
	pending := c.pending(t, "for later")
	c.export(t, "n1", "audit-of-epoch-1")
	c.atDesk(t, operations(t, "backup"))
	sum := strings.TrimSpace(c.atDesk(t, "hallpass snapshot inspect cluster.snapshot -o json | jq -r .sha256"))

	forgotten := c.give(t, "forgotten")
	proxy := c.container(t, "proxy")
	c.must(t, bearable, "docker", "stop", "--time", "40", proxy)
	c.revoke(t, later)
	c.revoke(t, forgotten)
	for _, n := range c.members {
		c.wreck(t, n, "data")
		c.rack(t, n)
	}

	first := c.members[0]
	c.typed(t, "SHA256="+sum+"\n"+dockerCompose+inContainers(t, "n1", first))
	c.atNode(t, first, operations(t, "start-first"))
	for _, n := range c.members[1:] {
		c.atNode(t, n, operations(t, "start-empty", "mv data data-before\n", ""))
		c.atDesk(t, operations(t, "rejoin", "n2", n))
	}
	c.must(t, bearable, "docker", "start", proxy)

	c.refuses(t, known.cert, "revoked")
	c.refuses(t, later.cert, "revoked") // by the epoch, which ended what the snapshot has as live
	c.refuses(t, live.cert, "revoked")
	c.refuses(t, forgotten.cert, "epoch_ended")
	c.isEpoch(t, 2, pending, all)
	c.give(t, "given-in-2")
	c.verifies(t, 2)
}

// inContainers is the page's command for containers.
func inContainers(t *testing.T, pairs ...string) string {
	t.Helper()
	return marked(t, "docs/operations.md", "not run: containers are the compose test's", pairs...)
}

// dockerCompose is docker-compose in the cluster's folder, whichever compose is here.
const dockerCompose = `docker-compose() { "$COMPOSE_SH" run "$@"; }
`

// pending asks for what nobody decides.
func (c *cluster) pending(t *testing.T, reason string) api.Request {
	t.Helper()
	ask := api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(30 * time.Minute), Reason: reason}
	r, err := c.client(t, "erin", c.members...).CreateRequest(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// isEpoch checks that each node is in the epoch, with all that was acknowledged, and with nothing of
// it open.
func (c *cluster) isEpoch(t *testing.T, epoch uint64, pending api.Request, all []ledger.Entry) {
	t.Helper()
	if now := c.cluster(t); now.Epoch != epoch || now.EpochBegan == nil {
		t.Errorf("epoch %d, begun %v, want %d", now.Epoch, now.EpochBegan, epoch)
	}
	logs := make([][]byte, 0, len(c.members))
	for _, n := range c.members {
		c.serves(t, n)
		client := c.client(t, "bob", n)
		logs = append(logs, c.log(t, n))
		if err := ledger.Check(t.Context(), client, ended(all)); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		live, err := client.Grants(t.Context(), api.Filter{State: api.GrantActive}, api.Stale())
		if err != nil || len(live.Grants) > 0 {
			t.Errorf("%s has %d live grants of before: %v", n, len(live.Grants), err)
		}
		if r, err := client.Request(t.Context(), pending.ID, api.Stale()); err != nil || r.State != api.RequestExpired {
			t.Errorf("%s: the request that waited is %s: %v", n, r.State, err)
		}
	}
	oneHistory(t, append(logs, c.oneLog(t, c.members[0], all)))
}

// verifies checks the log, which goes on from that of the epoch before, by the page.
func (c *cluster) verifies(t *testing.T, epoch int) {
	t.Helper()
	of := strconv.Itoa(epoch)
	printed := c.atDesk(t, operations(t, "verify-restored", "audit-restored", "audit-of-epoch-"+of, "manifest.json", ".hallpass/manifest.json",
		"checkpoints/saved", "audit-of-epoch-"+strconv.Itoa(epoch-1)+"/checkpoint"))
	if !strings.Contains(printed, "epoch "+of) {
		t.Errorf("it verifies no log of epoch %d:\n%s", epoch, printed)
	}
}

// recoverQuorum goes on at n1 when the disks and the keys of the others are gone, and with them what n1
// missed: a grant, and that it was revoked.
func recoverQuorum(t *testing.T, c *cluster, all []ledger.Entry) {
	l := write(t, c, "in epoch 2")
	l.grows(t)
	all = append(all, l.close(t)...)
	known, live := c.give(t, "revoked-in-2"), c.give(t, "live-in-2")
	c.revoke(t, known)
	c.refuses(t, known.cert, "revoked")
	pending := c.pending(t, "for after the fire")
	c.serves(t, "n1") // so it has all of that, and no more:
	n1, network := c.container(t, "n1"), c.project+"_control"
	c.must(t, bearable, "docker", "network", "disconnect", network, n1)
	c.members = c.others("n1")
	forgotten := c.give(t, "forgotten-in-2")
	proxy := c.container(t, "proxy")
	c.must(t, bearable, "docker", "stop", "--time", "40", proxy)
	c.revoke(t, forgotten)
	for _, n := range []string{"n2", "n4"} {
		c.wreck(t, n, "keys", "data")
	}
	c.must(t, bearable, "docker", "volume", "rm", c.volume("n4-keys"), c.volume("n4-data"))
	c.members, c.more = []string{"n1"}, ""
	c.must(t, bearable, "docker", "network", "connect", "--alias", "n1", network, n1)

	const config = "/etc/hallpass/server.yaml"
	c.atNode(t, "n1", operations(t, "survey", "server.yaml", config))
	c.atNode(t, "n1", operations(t, "recover", "server.yaml", config, "n2,n3", "n2,n4"))
	c.atNode(t, "n1", operations(t, "start-first"))
	c.must(t, bearable, "docker", "start", proxy)
	for _, n := range []string{"n2", "n4"} {
		c.atDesk(t, operations(t, "gone", "n3", n))
		c.drop(t, n)
	}
	for _, n := range []string{"n2", "n3"} { // n3 is new under an old name, as n2 is
		c.join(t, n)
		c.promote(t, n)
	}

	c.refuses(t, known.cert, "revoked")
	c.refuses(t, live.cert, "revoked")
	c.refuses(t, forgotten.cert, "epoch_ended")
	c.isEpoch(t, 3, pending, all)
	c.give(t, "given-in-3")
	c.verifies(t, 3)
}
