//go:build integration || kms

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lose ends a node for good, and its data with it.
func (p *pagesRun) lose(t *testing.T, node string) {
	t.Helper()
	p.nodes[node].run(t, "kill -KILL $(cat server.pid); while kill -0 $(cat server.pid); do sleep 0.1; done 2>/dev/null; true")
	if err := os.RemoveAll(filepath.Join(p.dir, node, "data")); err != nil {
		t.Fatal(err)
	}
}

// lostQuorum goes on at n1, with n2 and n3 gone, and has them join again with nothing.
func (p *pagesRun) lostQuorum(t *testing.T) {
	p.use(t) // a grant that is alive
	p.desk.run(t, "OLD=$ID; mkdir checkpoints; hallpass audit checkpoint > checkpoints/before")
	p.lose(t, "n2")
	p.lose(t, "n3")
	wants(t, p.desk.run(t, callAgain), "payments: GET /accounts/42")

	wants(t, p.nodes["n1"].run(t, p.page(t, "operations.md survey")), "voters     n1, n2, n3", "at least up to")
	recovered := p.nodes["n1"].run(t, p.page(t, "operations.md recover"))
	wants(t, recovered, "next: see to it that n2 and n3 cannot start", "next: start n1", "epoch", "2, from")
	p.nodes["n1"].run(t, p.page(t, "operations.md take-back"))
	p.nodes["n1"].run(t, p.page(t, "operations.md recover"))
	p.nodes["n1"].run(t, p.page(t, "operations.md start-first", "127.0.0.1:9900", p.admin("n1")))
	wants(t, p.desk.run(t, "hallpass cluster status"), "2, since")
	p.endedAtTheProxy(t)
	for _, n := range []string{"n2", "n3"} {
		p.nodes[n].run(t, "hallpass server --config server.yaml & echo $! > server.pid")
		wants(t, p.desk.run(t, p.page(t, "operations.md rejoin", "n2", n)), n+"    follower")
		p.nodes[n].run(t, "until hallpass health "+p.admin(n)+"; do sleep 0.1; done")
	}
	p.afterTheEpoch(t)
	p.use(t)
	wants(t, p.desk.run(t, "hallpass audit verify --manifest manifest.json --require 2 --older checkpoints/before"), "epoch 2")
	p.desk.run(t, "rm -r checkpoints")
}

// endedAtTheProxy waits until the grant in the desk's folder opens nothing, and looks that it is not renewed.
func (p *pagesRun) endedAtTheProxy(t *testing.T) {
	t.Helper()
	within(t, "a grant of before is refused", func() error {
		if strings.Contains(p.desk.run(t, callAgain+" || true"), "payments: ") {
			return errors.New("it is admitted")
		}
		return nil
	})
	refused(t, p.desk, "hallpass --identity people/alice grant cert $OLD --out again")
}

// afterTheEpoch waits until new things are made.
func (p *pagesRun) afterTheEpoch(t *testing.T) {
	t.Helper()
	within(t, "the epoch begins", func() error {
		began := `hallpass cluster status -o json | jq -e '(.epoch_began | sub("[.][0-9]+"; "") | fromdate) < now - 1'`
		if said := p.desk.run(t, began+" || true"); strings.TrimSpace(said) != "true" {
			return fmt.Errorf("said %q", said)
		}
		return nil
	})
}

// comingBack makes the cluster of a snapshot, with n3 gone.
func (p *pagesRun) comingBack(t *testing.T) {
	p.desk.run(t, "hallpass audit checkpoint > checkpoints/saved") // before the snapshot: proxies' anchors come at any time
	p.desk.run(t, p.page(t, "operations.md backup"))
	p.use(t)
	p.desk.run(t, "OLD=$ID")
	p.desk.run(t, "hallpass subject block spiffe://acme.test/agent/carol-bot --reason 'after the snapshot'")
	p.desk.run(t, "rm -r audit-today; hallpass audit export --out audit-today; hallpass audit checkpoint > checkpoints/lost")
	for _, n := range []string{"n1", "n2"} {
		p.stop(t, n)
	}
	wants(t, p.desk.run(t, callAgain), "payments: GET /accounts/42")
	p.carry(t, "desk/cluster.snapshot", "n1/cluster.snapshot")

	first := p.nodes["n1"]
	wants(t, refused(t, first, "hallpass snapshot restore cluster.snapshot --config server.yaml"), "is not empty", "move what is there away")
	first.run(t, "SHA256=$(sha256sum cluster.snapshot | cut -d ' ' -f 1)")
	wants(t, first.run(t, p.page(t, "operations.md restore-first")), "next: start n1", "3, from", "n2, n3")
	first.run(t, p.page(t, "operations.md start-first", "127.0.0.1:9900", p.admin("n1")))
	p.endedAtTheProxy(t)
	p.nodes["n2"].run(t, p.page(t, "operations.md start-empty"))
	wants(t, p.desk.run(t, p.page(t, "operations.md rejoin")), "n2    follower")
	p.afterTheEpoch(t)
	p.desk.run(t, p.page(t, "operations.md gone"))
	wants(t, p.desk.run(t, p.page(t, "operations.md lost")), "subject.block  spiffe://acme.test/agent/carol-bot  spiffe://acme.test/user/ada")
	p.use(t)
	wants(t, p.desk.run(t, p.page(t, "operations.md verify-restored")), "epoch 3")
	wants(t, refused(t, p.desk, "hallpass audit verify audit-restored --manifest manifest.json --older checkpoints/lost"),
		"the restore that began epoch 3 lost entries")
}
