package sim

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A run of the full length is a little more than a quarter of an hour, with the calm before and after its faults.
const (
	fullLength  = 14*time.Minute + 50*time.Second
	runsAnHour  = 4
	shortLength = 5 * time.Minute
	shortRuns   = 3

	telling = 40 // so many runs have everything in them
)

// TestSimulation runs seeds, each in a bubble of its own.
//
//	HALLPASS_SIM_HOURS  how many virtual hours, in runs of a quarter of an hour
//	HALLPASS_SIM_SEED   the first seed; without hours, the only one
//
// With neither it makes a few short runs.
func TestSimulation(t *testing.T) {
	hours, first := setting(t, "HALLPASS_SIM_HOURS"), setting(t, "HALLPASS_SIM_SEED")
	length, runs := fullLength, max(1, int(math.Ceil(hours*runsAnHour)))
	if hours == 0 && first == 0 {
		length, runs = shortLength, shortRuns
	}
	w, err := NewWorld(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &series{}
	t.Run("seed", func(t *testing.T) { // ends when all of them have
		for seed := max(1, uint64(first)); runs > 0; seed, runs = seed+1, runs-1 {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				s.run(t, w, seed, length)
			})
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	say("sim: total: %s", &s.total)
	say("sim: %d seeds, %d with violations", s.total.Runs, s.failed)
	if s.total.Virtual.Hours() < hours {
		t.Errorf("%.1f virtual hours, want %.1f", s.total.Virtual.Hours(), hours)
	}
	for _, name := range s.total.Missing() {
		if s.total.Runs >= telling {
			t.Errorf("%d runs without any %s: they say little", s.total.Runs, name)
		}
	}
	if c := s.total; c.Elections == 0 || c.Crashes == 0 || c.Commands == 0 {
		t.Error("nothing happened")
	}
}

func setting(t *testing.T, name string) float64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v <= 0 {
		t.Fatalf("%s: %q is not a number above 0", name, text)
	}
	return v
}

func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }

// series is the runs of one test.
type series struct {
	mu     sync.Mutex
	total  Counts // guarded by mu
	failed int    // guarded by mu
}

func (s *series) run(t *testing.T, w *World, seed uint64, length time.Duration) {
	var r *Result
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		r = Run(w, Options{Seed: seed, Length: length, Dir: t.TempDir()})
	})
	wrong := r.Violations()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total.Add(r.Counts)
	say("sim: seed %d in %.1f s: %s", seed, time.Since(began).Seconds(), &r.Counts)
	if len(wrong) == 0 {
		return
	}
	const histories = 3 // the others say the same, or can be had by their seed
	if s.failed++; s.failed <= histories {
		say("sim: history of seed %d:", seed)
		r.WriteHistory(os.Stdout)
	}
	say("sim: seed %d FAILED: to run it again: make sim SEED=%d", seed, seed)
	for _, v := range wrong {
		t.Error(v)
	}
}
