package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallpass/hallpass/bench/seed"
	"github.com/hallpass/hallpass/internal/demo"
)

// What a cluster at full size has been through; -scale is a part of it.
const (
	fullGrants  = 1_000_000
	fullEntries = 10_000_000
	fullDays    = 400

	restartRounds = 3
	idleAfter     = 30 * time.Second // without a caller, a node idles
)

// size is a cluster that has lived for long beside one that has not.
type size struct {
	r          *report
	seeded     seededCluster
	big, small *demo.Stage
}

func benchSize(ctx context.Context, r *report) (err error) {
	s := &size{r: r}
	if s.small, err = demo.NewStage(s.options("")); err != nil {
		return err
	}
	defer s.small.Close()
	if err := s.small.StartControl(ctx); err != nil {
		return err
	}
	idle := time.Now()
	if s.seeded, err = seededAt(ctx, r, s.options); err != nil {
		return err
	}
	s.big = s.seeded.stage
	defer s.seeded.close()
	if err := s.idle(ctx, idle); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"start", s.start},
		{"restart", s.restart},
		{"rebuild", s.rebuild},
		{"reads", s.reads},
		{"join", s.join},
	} {
		if r.part != "" && r.part != part.name && part.name != "start" {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// options are those of both clusters: the same people and the same policy.
func (s *size) options(dir string) demo.Options {
	return demo.Options{Binary: s.r.binary, Out: s.r.log, Unpaced: true, Dir: dir, Seed: seed.Company(seed.Extra{
		Persons: `  - {name: alice, ids: ["spiffe://acme.test/user/alice", "spiffe://acme.test/user/alice-phone"]}
  - {name: bob, ids: ["spiffe://acme.test/user/bob"]}
  - {name: carol, ids: ["spiffe://acme.test/user/carol"]}
  - {name: dana, ids: ["spiffe://acme.test/user/dana"]}
`,
		Groups: "  - {name: engineers, members: [alice, bob]}\n  - {name: payments-owners, members: [alice, bob]}\n",
		Rules: `    - name: payments-stream
      service: payments
      requesters: [group:engineers]
      permissions: ["GET /stream"]
      require: [{group: payments-owners, approvals: 1}]
      max_duration: 1h
`,
	})}
}

// figure prints a figure of the seeded cluster. What was taken at another size than
// the full one says so in its unit, and is never made out to be more.
func (s *size) figure(name string, value float64, unit string) {
	if scale := s.seeded.scale; scale != 1 {
		unit += fmt.Sprintf("@%g", scale)
	}
	s.r.figure(name, value, unit)
}

// idle is how much memory a node of a cluster takes in which nothing happens.
func (s *size) idle(ctx context.Context, since time.Time) error {
	if err := sleep(ctx, idleAfter-time.Since(since)); err != nil {
		return err
	}
	most, err := s.memory("idle, empty", s.small, []string{"n1", "n2", "n3"})
	if err == nil {
		s.r.figure("control.idle.rss_mb", most.rss, "MB")
	}
	return err
}

// start brings the seeded cluster up, as it was left: closed in order.
func (s *size) start(ctx context.Context) error {
	begin := time.Now()
	if err := s.big.StartControl(ctx); err != nil {
		return err
	}
	s.r.note("all three nodes of the seeded cluster are ready after %.1f s", time.Since(begin).Seconds())
	// Taken now: the last one that a node has is of an earlier state, by up to 65,536 entries.
	file := filepath.Join(s.seeded.dir, "snapshot")
	if _, err := s.big.CLI(ctx, "bob", "snapshot", "save", file, "--without-audit-bodies"); err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	s.figure("control.snapshot.mb", float64(info.Size())/1e6, "MB")
	if err := s.files("n1"); err != nil {
		return err
	}
	if err := sleep(ctx, idleAfter); err != nil {
		return err
	}
	most, err := s.memory("idle, seeded", s.big, []string{"n1", "n2", "n3"})
	if err == nil {
		s.figure("control.idle_full.rss_mb", most.rss, "MB")
	}
	return err
}

// files says how large what a node keeps is.
func (s *size) files(node string) error {
	sizes := make(map[string]float64)
	dir := s.big.DataDir(node)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		name, _, _ := strings.Cut(strings.TrimPrefix(path, dir+string(filepath.Separator)), string(filepath.Separator))
		if err == nil {
			sizes[name] += float64(info.Size()) / 1e6
		}
		return err
	})
	s.r.note("a node keeps, in MB: state.db %.0f, raft.db %.0f, snapshots %.0f, records %.0f",
		sizes["state.db"], sizes["raft.db"], sizes["snapshots"], sizes["records"])
	return err
}

// followers are the nodes that do not lead now.
func (s *size) followers(ctx context.Context) ([]string, error) {
	text, err := s.big.CLI(ctx, "bob", "cluster", "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Leader string `json:"leader"`
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return nil, err
	}
	all := []string{"n1", "n2", "n3"}
	return slices.DeleteFunc(all, func(n string) bool { return n == status.Leader }), nil
}

// restart times a node that was told to stop, from its start to when it is ready.
func (s *size) restart(ctx context.Context) error {
	followers, err := s.followers(ctx)
	if err != nil {
		return err
	}
	var took []float64
	for round := range restartRounds {
		name := followers[round%len(followers)]
		begin := time.Now()
		if err := s.big.StopNode(ctx, name); err != nil {
			return err
		}
		stop := time.Since(begin)
		again, err := s.big.Restart(ctx, name)
		if err != nil {
			return err
		}
		cpu, err := cpuOf(s.big.PID(name))
		if err != nil {
			return err
		}
		s.r.note("restart of %s: stopped in %.2f s, ready after %.2f s, %.2f s of CPU", name, stop.Seconds(), again.Seconds(), cpu.Seconds())
		took = append(took, again.Seconds())
	}
	s.figure("control.restart.s", median(took), "s")
	return nil
}

// rebuild times a node that was killed: it makes its state of its snapshot and its
// log.
func (s *size) rebuild(ctx context.Context) error {
	followers, err := s.followers(ctx)
	if err != nil {
		return err
	}
	name := followers[0]
	s.big.KillNode(name)
	took, err := s.big.Restart(ctx, name)
	if err != nil {
		return err
	}
	cpu, err := cpuOf(s.big.PID(name))
	if err != nil {
		return err
	}
	if _, err := s.memory("after a rebuild", s.big, []string{name}); err != nil {
		return err
	}
	s.r.note("rebuild of %s: %.2f s of CPU", name, cpu.Seconds())
	s.figure("control.rebuild.s", took.Seconds(), "s")
	return nil
}

// join times a node that has nothing, from its start until it votes.
func (s *size) join(ctx context.Context) error {
	const name = "n4"
	if err := s.big.AddNode(ctx, name); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.big.Launch(ctx, name); err != nil {
		return err
	}
	for {
		_, err := s.big.CLI(ctx, "bob", "cluster", "join", name)
		if err == nil {
			break
		}
		if time.Since(begin) > 30*time.Second { // it answers once it listens
			return err
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	for {
		_, err := s.big.CLI(ctx, "bob", "cluster", "promote", name)
		if err == nil {
			break
		}
		if time.Since(begin) > 5*time.Minute || ctx.Err() != nil {
			return err
		}
	}
	s.figure("control.join.s", time.Since(begin).Seconds(), "s")
	if _, err := s.memory("while joining", s.big, []string{"n1", "n2", "n3", name}); err != nil {
		return err
	}
	if err := s.big.AwaitNode(ctx, name); err != nil {
		return err
	}
	s.r.note("%s is ready, by its own word, after %.1f s", name, time.Since(begin).Seconds())
	_, err := s.big.CLI(ctx, "bob", "cluster", "remove", name, "--reason", "bench", "--retired")
	return err
}

// memory is what processes have in memory, in MB: of it all, of their own, and of
// files that they have mapped, which the system takes back when it needs to. Of
// several it is the most.
type memory struct{ rss, anon, file, peak float64 }

func (s *size) memory(when string, stage *demo.Stage, nodes []string) (most memory, err error) {
	for _, n := range nodes {
		m, err := memoryOf(stage.PID(n))
		if err != nil {
			return most, err
		}
		s.r.note("memory, %s: %s has %.1f MB, of which %.1f its own and %.1f of files; %.1f at most so far", when, n, m.rss, m.anon, m.file, m.peak)
		if m.rss > most.rss {
			most = m
		}
	}
	return most, nil
}

func memoryOf(pid int) (m memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		key, rest, _ := strings.Cut(line, ":")
		to := map[string]*float64{"VmRSS": &m.rss, "RssAnon": &m.anon, "RssFile": &m.file, "VmHWM": &m.peak}[key]
		if to == nil {
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
		if err != nil {
			return m, fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
		*to = kb * 1024 / 1e6
	}
	if m.rss == 0 {
		return m, fmt.Errorf("/proc/%d/status says nothing of memory", pid)
	}
	return m, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
