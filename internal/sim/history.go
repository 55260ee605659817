package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// history is what happened in a run, in order.
type history struct {
	counts *counters

	mu     sync.Mutex
	events []event  // guarded by mu
	wrong  []string // guarded by mu
}

type event struct {
	at   time.Time
	who  string
	what string
}

func (h *history) note(who, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, event{time.Now(), who, fmt.Sprintf(format, args...)})
}

// violation notes something that must never be.
func (h *history) violation(who, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	h.note(who, "VIOLATION: %s", text)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = append(h.wrong, who+": "+text)
}

func (h *history) violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.wrong)
}

// write writes the history, a line an event, times counted from the run's beginning.
func (h *history) write(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		t := e.at.Sub(epoch())
		fmt.Fprintf(w, "%02d:%02d:%07.4f  %-6s %s\n", int(t.Hours()), int(t.Minutes())%60, (t % time.Minute).Seconds(), e.who, e.what)
	}
}

// nodeLog keeps of what a node logs what a reader of a history needs.
type nodeLog struct {
	h    *history
	node string
}

func (l nodeLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l nodeLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l nodeLog) WithGroup(string) slog.Handler                    { return l }

func (l nodeLog) Handle(_ context.Context, r slog.Record) error {
	switch {
	case r.Message == "raft: election won":
		l.h.counts.elections.Add(1)
	case r.Message == "raft: Installed remote snapshot":
		l.h.counts.installs.Add(1)
	case r.Message == "raft: failed to get log":
		// A leader that has compacted what a peer asks for says so and sends a snapshot. Who misses what it has to apply
		// panics next, and nobody would be left to tell.
		if bytes.Contains(debug.Stack(), []byte(".processLogs(")) {
			defer l.h.write(os.Stderr)
		}
	case r.Level >= slog.LevelError:
	default:
		return nil
	}
	var b strings.Builder
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	l.h.note(l.node, "log: %s", b.String())
	return nil
}
