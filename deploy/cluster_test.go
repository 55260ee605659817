//go:build compose

package deploy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cluster is the example cluster under a project name, ports and a folder of its own, so that it
// stands beside whatever `make up` has started.
type cluster struct {
	project string
	dir     string // where a person would type: bin and .hallpass are in it
	people  string // the people's identities, apart from the folder that `make up` writes anew
	ports   map[string]int
	members []string // the control nodes, by the name of their service
	script  string   // deploy/compose.sh, from wherever
	more    string   // a compose file beside docker-compose.yml; "" if there is none
}

// newCluster chooses the names; nothing is started yet. What it started is gone after the test,
// whatever becomes of the test.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		project: fmt.Sprintf("hallpasstest%d", os.Getpid()), dir: t.TempDir(), people: filepath.Join(t.TempDir(), "people"),
		ports: map[string]int{"n1": 0, "n2": 0, "n3": 0, "n4": 0, "proxy": 0}, members: []string{"n1", "n2", "n3"},
	}
	for name := range c.ports {
		c.ports[name] = freePort(t, c.ports)
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	if c.script, err = filepath.Abs("compose.sh"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(c.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	// No docker is a failure, never a test left out: this is what the target is for.
	if out, err := c.run(t, time.Minute, "..", "docker", "version", "--format", "{{.Server.Version}}"); err != nil {
		t.Fatalf("no docker engine answers: %v\n%s", err, out)
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	t.Cleanup(func() {
		signal.Stop(told)
		close(told)
		c.sweep(t)
	})
	go func() { // ends with the test, or ends it
		if _, ok := <-told; ok {
			c.sweep(t)
			os.Exit(1)
		}
	}()
	return c
}

// sweep removes whatever is there.
func (c *cluster) sweep(t *testing.T) {
	t.Helper()
	left, err := c.run(t, bearable, "..", "docker", "ps", "-a", "-q", "--filter", "label="+c.label())
	if err != nil {
		t.Errorf("docker ps: %v\n%s", err, left)
	}
	for id := range strings.FieldsSeq(left) { // a test that failed left a command at work
		if out, err := c.run(t, bearable, "..", "docker", "rm", "--force", id); err != nil {
			t.Errorf("docker rm: %v\n%s", err, out)
		}
	}
	if out, err := c.run(t, 2*time.Minute, "..", "make", "destroy"); err != nil {
		t.Errorf("make destroy: %v\n%s", err, out)
	}
}

// freePort finds a port that nobody listens on, below those that outgoing connections take: a
// stopped container's port must still be free when the container comes back.
func freePort(t *testing.T, taken map[string]int) int {
	t.Helper()
next:
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		for _, p := range taken {
			if p == port {
				continue next
			}
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free port")
	return 0
}

// run runs a program in dir with the cluster's names in its environment and gives all it printed.
// It outlives the test's context, because destroying does.
func (c *cluster) run(t *testing.T, limit time.Duration, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+c.project, "HALLPASS_FOLDER="+c.folder(), "COMPOSE_SH="+c.script)
	for service, port := range c.ports {
		cmd.Env = append(cmd.Env, fmt.Sprintf("COMPOSE_PORT_%s=%d", strings.ToUpper(service), port))
	}
	if c.more != "" {
		cmd.Env = append(cmd.Env, "COMPOSE_FILE=docker-compose.yml:"+c.more)
	}
	// A child that keeps the pipe open after the deadline must not hold the test up.
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s: %w", limit, errors.Join(ctx.Err(), err))
	}
	return strings.TrimSpace(string(out)), err
}

// must runs a program of the module's folder that has to succeed.
func (c *cluster) must(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	out, err := c.run(t, limit, "..", name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// typed runs text as a person would type it into a shell, in the cluster's folder; the first
// command that fails ends it.
func (c *cluster) typed(t *testing.T, text string) string {
	t.Helper()
	out, err := c.run(t, patience, c.dir, "bash", "-euo", "pipefail", "-c", text)
	if err != nil {
		t.Fatalf("%v\n--- typed:\n%s\n--- printed:\n%s", err, text, out)
	}
	return out
}

func (c *cluster) folder() string { return filepath.Join(c.dir, ".hallpass") }

// url of a node or of the proxy.
func (c *cluster) url(service string) string {
	return fmt.Sprintf("https://localhost:%d", c.ports[service])
}

// container gives the id of a service's container.
func (c *cluster) container(t *testing.T, service string) string {
	t.Helper()
	id := c.must(t, time.Minute, "docker", "ps", "-a", "-q",
		"--filter", "label=com.docker.compose.project="+c.project, "--filter", "label=com.docker.compose.service="+service)
	if id == "" || strings.Contains(id, "\n") {
		t.Fatalf("containers of %s: %q, want one", service, id)
	}
	return id
}

// there lists what docker has under the cluster's project: "container", "volume" or "network".
func (c *cluster) there(t *testing.T, kind string) []string {
	t.Helper()
	args := []string{kind, "ls", "-q", "--filter", "label=com.docker.compose.project=" + c.project}
	if kind == "container" {
		args = append(args, "-a")
	}
	return strings.Fields(c.must(t, time.Minute, "docker", args...))
}

// within asks again until f finds nothing wrong, and gives up after limit.
func within(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s: %v", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// logsOnFailure prints what the containers said, when the test has failed by its end.
func (c *cluster) logsOnFailure(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	out, err := c.run(t, time.Minute, "..", "deploy/compose.sh", "run", "ps", "-a")
	t.Logf("containers (%v):\n%s", err, out)
	out, err = c.run(t, time.Minute, "..", "deploy/compose.sh", "run", "logs", "--no-color")
	lines := strings.Split(out, "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, " msg=call ") }) // nearly all
	t.Logf("logs (%v):\n%s", err, strings.Join(lines[max(0, len(lines)-2000):], "\n"))
}
