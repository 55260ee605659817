package demo

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// Addresses are what Options.Again wants, of a folder that is to be gone on with.
// Links in it, which are the admins' identities, are not to be copied.
func (s *Stage) Addresses() []string {
	var all []string
	for _, kept := range s.kept {
		all = append(all, kept.Address())
	}
	return all
}

// Manifest is the file that lists the cluster's nodes.
func (s *Stage) Manifest() string { return s.path("offline", "manifest.json") }

// KeysDir and DataDir are a node's.
func (s *Stage) KeysDir(node string) string { return s.path(node, "keys") }

// DataDir is where a node keeps its data.
func (s *Stage) DataDir(node string) string { return s.path(node, "data") }

// LogFile is where what a node says goes.
func (s *Stage) LogFile(node string) string { return s.path(node + ".log") }

// PID is the process id of a node that runs.
func (s *Stage) PID(node string) int { return s.nodes[node].cmd.Process.Pid }

// CLI runs one hallpass command as the person would who has that identity, and
// returns what it printed.
func (s *Stage) CLI(ctx context.Context, as string, args ...string) (string, error) {
	return s.must(ctx, as, args...)
}

// Node is the address at which one node takes calls.
func (s *Stage) Node(name string) string { return "https://" + s.api[name] }

// Launch starts a control node and waits for nothing.
func (s *Stage) Launch(ctx context.Context, name string) error {
	pr, err := s.launch(ctx, name, "server", "--config", s.path(name+".yaml"))
	if err == nil {
		s.nodes[name] = pr
	}
	return err
}

// AwaitNode waits until a node says that it is ready.
func (s *Stage) AwaitNode(ctx context.Context, name string) error {
	return ready(ctx, s.nodes[name], "http://"+s.admin[name]+"/readyz")
}

// StopNode asks a node to end in order, and waits until it has.
func (s *Stage) StopNode(ctx context.Context, name string) error {
	pr := s.nodes[name]
	if err := pr.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	select {
	case <-pr.done:
	case <-ctx.Done():
		return fmt.Errorf("%s does not stop: %w", name, context.Cause(ctx))
	}
	if state := pr.cmd.ProcessState; !state.Success() {
		return fmt.Errorf("%s did not stop in order: %s", name, state)
	}
	return nil
}

// AddNode makes the keys of one more node, has the roots sign it, and has the
// cluster take the manifest that lists it. Nothing is started.
func (s *Stage) AddNode(ctx context.Context, name string) error {
	addresses, err := s.keep(3)
	if err != nil {
		return err
	}
	s.api[name], s.raft[name], s.admin[name] = addresses[0], addresses[1], addresses[2]
	if err := os.WriteFile(s.path(name+".yaml"), []byte(s.serverConfig(name)), 0o600); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(s.api[name])
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{
			"server", "init", "--dir", s.KeysDir(name), "--node", name, "--trust-domain", trustDomain,
			"--raft-address", s.raft[name], "--api-address", s.api[name], "--ip", host, "--dns", "localhost",
		},
		{"ca", "sign-node", "--dir", s.path("offline"), "--add", s.path(name, "keys", "node-request.json")},
		{"cluster", "adopt", s.Manifest()},
	} {
		if _, err := s.must(ctx, "bob", args...); err != nil {
			return err
		}
	}
	return nil
}

// patienceToReady is how long a cluster of any size may take to start.
const patienceToReady = 5 * time.Minute

// Restart starts nodes again, whatever is in their folders, and says how long each
// took to be ready.
func (s *Stage) Restart(ctx context.Context, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patienceToReady)
	defer cancel()
	begin := time.Now()
	if err := s.StartNodes(ctx, name); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}
