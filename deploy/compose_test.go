//go:build compose

package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/internal/ledger"
)

// TestCompose drives the real containers. Its steps build on each other: the first that fails
// ends the test.
func TestCompose(t *testing.T) {
	c := newCluster(t)
	defer c.logsOnFailure(t)
	var l *writing
	var all []ledger.Entry // of the ledgers that are closed
	steps := []struct {
		name string
		run  func(t *testing.T)
	}{
		{"up", func(t *testing.T) { up(t, c) }},
		{"README with the CLI", func(t *testing.T) { readme(t, c, "cli") }},
		{"README with curl alone", func(t *testing.T) { readme(t, c, "curl") }},
		{"the command of the 403", func(t *testing.T) { followTheRefusal(t, c) }},
		{"approve and mint", func(_ *testing.T) { l = write(t, c, "in epoch 1"); l.grows(t); c.access(t, l) }},
		{"export the log", func(t *testing.T) { c.export(t, "n1", "audit-before") }},
		{"kill the leader", func(t *testing.T) { killLeader(t, c, l) }},
		{"cut the leader off", func(t *testing.T) { cutOff(t, c, l) }},
		{"restart one after the other", func(t *testing.T) { all = rolling(t, c, l) }},
		{"restart all, volumes kept", func(t *testing.T) { restart(t, c, l) }},
		{"replace a node", func(t *testing.T) { replace(t, c, l) }},
		{"nothing lost, nothing minted twice", func(t *testing.T) { all = nothingLost(t, c, l, all) }},
		{"restore a snapshot", func(t *testing.T) { restore(t, c, all) }},
		{"go on without a quorum", func(t *testing.T) { recoverQuorum(t, c, all) }},
		{"destroy leaves nothing", func(t *testing.T) { destroy(t, c) }},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.run) {
			return
		}
	}
}

// up starts the cluster and types what it says to type next.
func up(t *testing.T, c *cluster) {
	out := c.must(t, 4*time.Minute, "deploy/compose.sh", "up")
	_, next, ok := strings.Cut(out, "Type, in this folder:\n")
	next, _, ok2 := strings.Cut(next, "\nThe same address")
	if !ok || !ok2 {
		t.Fatalf("it does not say what to type next:\n%s", out)
	}
	wantAccount(t, c.typed(t, next))
	if err := os.RemoveAll(filepath.Join(c.folder(), "grant")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(c.people, os.DirFS(c.folder())); err != nil {
		t.Fatal(err)
	}
}

// readme types a block of README.md, letter by letter but for the ports.
func readme(t *testing.T, c *cluster, name string) {
	wantAccount(t, c.typed(t, c.withPorts(t, block(t, "README.md", name))))
}

// followTheRefusal goes where a stranger to Hallpass would: from the refusal, by the command in
// it, to the answer.
func followTheRefusal(t *testing.T, c *cluster) {
	wantAccount(t, c.typed(t, c.withPorts(t, `
export PATH="$PWD/bin:$PATH" HALLPASS_IDENTITY="$PWD/.hallpass/alice"
export HALLPASS_SERVER=https://localhost:8441,https://localhost:8442,https://localhost:8443
status() {
  curl -sS -o answer -w '%{http_code}' --cacert .hallpass/alice/identity-bundle.pem --cert $1/cert.pem --key $1/key.pem https://localhost:9443/accounts/42
}
[ "$(status .hallpass/alice)" = 403 ] || { cat answer; exit 1; }
command=$(jq -r .command answer)
echo "$command"
eval "$command" > asked
cat asked
id=$(grep -oE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' asked | head -n 1)
hallpass --identity .hallpass/bob review approve $id --yes
hallpass grant cert $id --out .hallpass/by-command
[ "$(status .hallpass/by-command)" = 200 ] || { cat answer; exit 1; }
cat answer
`)))
}

// wantAccount checks that the last thing printed is the upstream's answer.
func wantAccount(t *testing.T, printed string) {
	t.Helper()
	want, err := os.ReadFile("compose/www/accounts/42")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(printed, strings.TrimSpace(string(want))) {
		t.Fatalf("the service's answer is not what was printed last:\n%s", printed)
	}
}

// destroy removes everything.
func destroy(t *testing.T, c *cluster) {
	c.must(t, 2*time.Minute, "make", "destroy")
	for _, kind := range []string{"container", "volume", "network"} {
		if left := c.there(t, kind); len(left) > 0 {
			t.Errorf("make destroy leaves a %s: %v", kind, left)
		}
	}
	if _, err := os.Stat(c.folder()); !os.IsNotExist(err) {
		t.Errorf("make destroy leaves the people's folder: %v", err)
	}
}
