package demo

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Options says how to run.
type Options struct {
	Binary string // path of the hallpass binary
	Out    io.Writer
	// LogStore is the nodes' log_store; empty: their default.
	LogStore string
	// Unpaced lets each identity call as fast as it can, for benchmarks in which
	// one stands for many.
	Unpaced bool
	// Seed is who is who, and the first policy, as `ca init --seed` reads it; empty:
	// the demo's people.
	Seed string
	Dir  string // where to put everything; empty: a temporary folder, removed at the end
	// Again is what Addresses gave of an earlier stage, with a copy of whose folder,
	// Dir, this one goes on.
	Again []string
}

// Stage is a cluster with its people, a proxy and an upstream, each part a
// process of its own. A Stage is used by one goroutine.
type Stage struct {
	*place
	out      io.Writer
	nodes    map[string]*process
	proxy    *process
	upstream *process
	founded  bool
	passed   int
	failed   int
	cleanup  func()
}

// NewStage makes the folder with the configuration and starts nothing.
func NewStage(o Options) (*Stage, error) {
	binary, err := filepath.Abs(o.Binary) // commands run in another folder
	if err != nil {
		return nil, err
	}
	dir, cleanup := o.Dir, func() {}
	switch {
	case o.Again != nil:
	case dir == "":
		if dir, err = os.MkdirTemp("", "hallpass-demo-"); err != nil {
			return nil, err
		}
		cleanup = func() { _ = os.RemoveAll(dir) } // scratch
	default:
		if dir, err = filepath.Abs(dir); err != nil { // for the same reason
			return nil, err
		}
		if err = os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("the folder must not exist yet, nothing in it would be safe: %w", err)
		}
	}
	p, err := newPlace(dir, binary, o)
	if err != nil {
		cleanup()
		return nil, err
	}
	return &Stage{place: p, out: o.Out, nodes: make(map[string]*process), founded: o.Again != nil, cleanup: cleanup}, nil
}

// Found makes the roots, the keys of the nodes and of the people, and the
// manifest, unless it has. StartControl does it by itself; between the two, the
// nodes' data can be put where they will look for it.
func (s *Stage) Found(ctx context.Context) error {
	if s.founded {
		return nil
	}
	err := s.found(ctx)
	s.founded = err == nil
	return err
}

// StartControl brings up the control nodes alone.
func (s *Stage) StartControl(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	if err := s.Found(ctx); err != nil {
		return err
	}
	return s.StartNodes(ctx, nodes[:]...)
}

// Start brings up the control nodes, issues the proxy its identity through
// them, and starts the proxy and the upstream.
func (s *Stage) Start(ctx context.Context) error {
	if err := s.StartControl(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	if _, err := s.must(ctx, "bob", "identity", "issue", "service/"+service,
		"--dns", "localhost", "--ip", "127.0.0.1", "--out", s.Identity(service)); err != nil {
		return err
	}
	var err error
	if s.upstream, err = s.launch(ctx, "upstream", "demo-upstream", s.place.upstream); err != nil {
		return err
	}
	if err := ready(ctx, s.upstream, "http://"+s.place.upstream+"/healthz"); err != nil {
		return err
	}
	if s.proxy, err = s.launch(ctx, "proxy", "proxy", "--config", s.path("proxy.yaml")); err != nil {
		return err
	}
	return ready(ctx, s.proxy, "http://"+s.watch+"/readyz")
}

// StartNodes starts control nodes and waits until each says it is ready.
func (s *Stage) StartNodes(ctx context.Context, names ...string) error {
	for _, n := range names {
		pr, err := s.launch(ctx, n, "server", "--config", s.path(n+".yaml"))
		if err != nil {
			return err
		}
		s.nodes[n] = pr
	}
	for _, n := range names {
		if err := ready(ctx, s.nodes[n], "http://"+s.admin[n]+"/readyz"); err != nil {
			return err
		}
	}
	return nil
}

// PIDs are the process ids of the control nodes.
func (s *Stage) PIDs() []int {
	pids := make([]int, 0, len(nodes))
	for _, n := range nodes {
		if pr := s.nodes[n]; pr != nil {
			pids = append(pids, pr.cmd.Process.Pid)
		}
	}
	return pids
}

// KillNode ends a control node with SIGKILL.
func (s *Stage) KillNode(name string) { s.nodes[name].kill() }

// Close ends every part, the proxy first so that it drains, and removes what
// NewStage made.
func (s *Stage) Close() {
	parts := []*process{s.proxy, s.upstream}
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		parts = append(parts, s.nodes[name])
	}
	for _, pr := range parts {
		if pr != nil {
			pr.stop()
		}
	}
	s.release()
	s.cleanup()
}

// step runs one part of the walk and says what came of it and how long it took.
func (s *Stage) step(name string, do func() (string, error)) {
	begin := time.Now()
	said, err := do()
	took := time.Since(begin).Round(time.Millisecond)
	if err != nil {
		s.failed++
		fmt.Fprintf(s.out, "FAIL %-34s %v (%s)\n", name, err, took)
		return
	}
	s.passed++
	fmt.Fprintf(s.out, "ok   %-34s %s (%s)\n", name, said, took)
}
