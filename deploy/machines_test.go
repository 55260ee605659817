//go:build compose

package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// docs/operations.md speaks of machines: one a node, one offline with the roots, and an admin's
// desk. Here they are a node's container and volumes, the volume of the certificate authority in a
// container without a network, and this machine with the published ports. What the page has one
// type is typed as it stands there; only names, addresses and folders are the ones of here.

// atDesk types text where an admin sits, after what the page has him type first.
func (c *cluster) atDesk(t *testing.T, text string) string {
	t.Helper()
	servers := make([]string, 0, len(c.members))
	for _, n := range c.members {
		servers = append(servers, c.url(n))
	}
	enter := operations(t, "admin",
		"https://n1.acme.test:8443,https://n2.acme.test:8443,https://n3.acme.test:8443", strings.Join(servers, ","),
		"ca/persons/ada", ".hallpass/bob")
	return c.typed(t, "export PATH=\"$PWD/bin:$PATH\"\n{\n"+enter+"} >/dev/null\n"+text)
}

// offline types text where the roots are: in the folder that has ca/, which init.sh calls offline/.
func (c *cluster) offline(t *testing.T, text string) string {
	t.Helper()
	return c.sh(t, []string{"ca:/ca"}, "cd /ca\n"+text, nil)
}

// atNode types text on a node's machine. What the page starts and kills there is the container;
// every other command has a container of its own, with the node's volumes and no network.
func (c *cluster) atNode(t *testing.T, node, text string) string {
	t.Helper()
	machine := `
container=` + c.container(t, node) + `
kill() { # SIGNAL PID; -0 leaves the status behind that it ended with
  if [ "$1" != -0 ]; then docker kill --signal "${1#-}" "$container" >/dev/null; return; fi
  local state; state=$(docker inspect -f '{{.State.Running}} {{.State.ExitCode}}' "$container")
  [ "${state% *}" = true ] || { echo "${state#* }" > ended-with; return 1; }
}
hallpass() {
  case "$1 $2" in
    "server --config") docker start "$container" >/dev/null ;;
    "health "*) docker exec "$container" /bin/hallpass "$@" ;;
    *) docker run --rm --label ` + c.label() + ` --network none --read-only --cap-drop ALL --env HALLPASS_NODE=` + node + ` \
      --volume ` + c.volume(node+"-keys") + `:/keys --volume ` + c.volume(node+"-data") + `:/data hallpass:local "$@" ;;
  esac
}
cd machines/` + node + "\n"
	dir := filepath.Join(c.dir, "machines", node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.pid"), []byte("the container's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return c.typed(t, machine+text+"\nwait\n")
}

// endedWith is the status that a node's process ended with when the page had it killed.
func (c *cluster) endedWith(t *testing.T, node string) string {
	t.Helper()
	file := filepath.Join(c.dir, "machines", node, "ended-with")
	status, err := os.ReadFile(file)
	if err := errors.Join(err, os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(status))
}

// label marks the containers that compose does not know.
func (c *cluster) label() string { return "hallpass.test=" + c.project }

func (c *cluster) volume(name string) string { return c.project + "_" + name }

// sh runs a script in a container with these volumes, as the containers' user.
func (c *cluster) sh(t *testing.T, volumes []string, script string, stdin io.Reader) string {
	t.Helper()
	args := []string{"run", "--rm", "--interactive", "--label", c.label(), "--network", "none", "--read-only", "--cap-drop", "ALL"}
	for _, v := range volumes {
		args = append(args, "--volume", c.volume(v))
	}
	args = append(args, "--entrypoint", "/bin/sh", "hallpass-init:local", "-euc", "umask 077\n"+script)
	ctx, cancel := context.WithTimeout(t.Context(), bearable)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdin, &out, &said, 5*time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n--- typed:\n%s\n--- printed:\n%s%s", err, script, out.String(), said.String())
	}
	return out.String()
}

// carry takes a file out of a folder of one volume, "ca:/offline/manifest.json", and puts it into
// another, or one of this machine, "/tmp/cluster.snapshot".
func (c *cluster) carry(t *testing.T, from, to string) {
	t.Helper()
	var data []byte
	var err error
	if volume, path, ok := strings.Cut(from, ":"); ok {
		data = []byte(c.sh(t, []string{volume + ":/from:ro"}, "cat /from"+path, nil))
	} else if data, err = os.ReadFile(from); err != nil {
		t.Fatal(err)
	}
	volume, path, ok := strings.Cut(to, ":")
	if !ok {
		t.Fatalf("%s is in no volume", to)
	}
	// Without a network a container still has its standard input.
	script := fmt.Sprintf("mkdir -p \"$(dirname /to%s)\"\ncat > /to%[1]s", path)
	c.sh(t, []string{volume + ":/to"}, script, bytes.NewReader(data))
}

// define gives compose a node that docker-compose.yml does not have: n3 under another name.
func (c *cluster) define(t *testing.T, node string) {
	t.Helper()
	text, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]map[string]any `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	n3, err := yaml.Marshal(file.Services["n3"])
	if err != nil {
		t.Fatal(err)
	}
	var service map[string]any
	if err := yaml.Unmarshal([]byte(strings.NewReplacer("n3", node, "N3", strings.ToUpper(node)).Replace(string(n3))), &service); err != nil {
		t.Fatal(err)
	}
	more, err := yaml.Marshal(map[string]any{
		"services": map[string]any{node: service},
		"volumes":  map[string]any{node + "-keys": struct{}{}, node + "-data": struct{}{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.more = filepath.Join(c.dir, node+".yml")
	if err := os.WriteFile(c.more, more, 0o600); err != nil {
		t.Fatal(err)
	}
}

// rack puts a node's machine there, with empty volumes and nothing running on it.
func (c *cluster) rack(t *testing.T, node string) {
	t.Helper()
	c.must(t, bearable, "deploy/compose.sh", "run", "up", "--no-start", "--no-deps", node)
}

// wreck takes a node's machine away: the container at once, and what is in these of its volumes.
func (c *cluster) wreck(t *testing.T, node string, volumes ...string) {
	t.Helper()
	c.must(t, bearable, "docker", "rm", "--force", c.container(t, node))
	for _, v := range volumes {
		c.sh(t, []string{node + "-" + v + ":/gone"}, "rm -rf /gone/* /gone/.[!.]*", nil)
	}
}
