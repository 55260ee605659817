package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options says how to run.
type Options struct {
	Binary string // path of the hallpass binary
	Out    io.Writer
	// LogStore is the nodes' log_store; empty: their default.
	LogStore string
	Dir      string // where to put everything; empty: a temporary folder, removed at the end
}

// Stage is a cluster with its people, a proxy and an upstream, each part a
// process of its own. A Stage is used by one goroutine.
type Stage struct {
	*place
	out      io.Writer
	nodes    map[string]*process
	proxy    *process
	upstream *process
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
	if dir == "" {
		if dir, err = os.MkdirTemp("", "hallpass-demo-"); err != nil {
			return nil, err
		}
		cleanup = func() { _ = os.RemoveAll(dir) } // scratch
	} else if err = os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the folder must not exist yet, nothing in it would be safe: %w", err)
	}
	p, err := newPlace(dir, binary, o.LogStore)
	if err != nil {
		cleanup()
		return nil, err
	}
	return &Stage{place: p, out: o.Out, nodes: make(map[string]*process), cleanup: cleanup}, nil
}

// StartControl brings up the control nodes alone.
func (s *Stage) StartControl(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	if err := s.found(ctx); err != nil {
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
	for _, pr := range []*process{s.proxy, s.upstream, s.nodes["n1"], s.nodes["n2"], s.nodes["n3"]} {
		if pr != nil {
			pr.stop()
		}
	}
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
