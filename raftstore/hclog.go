package raftstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// newRaftLogger sends raft's log to logger.
func newRaftLogger(logger *slog.Logger) hclog.Logger {
	// The root logger formats nothing; the sink gets every line.
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(&raftLog{logger: logger, said: make(map[string]*repeat)})
	return l
}

// quietFor is how long a warning about one peer is not repeated: raft says a hundred times a second that a node is down.
const quietFor = 10 * time.Second

type raftLog struct {
	logger *slog.Logger

	mu   sync.Mutex
	said map[string]*repeat // guarded by mu; by message and peer, of which there are few
}

type repeat struct {
	last    time.Time
	skipped int
}

func (r *raftLog) Accept(_ string, level hclog.Level, msg string, args ...any) {
	ctx := context.Background()
	to := slogLevel(level)
	if !r.logger.Enabled(ctx, to) {
		return
	}
	attrs := make([]slog.Attr, 0, len(args)/2+1)
	key := []string{msg}
	for i := 0; i+1 < len(args); i += 2 {
		name := fmt.Sprint(args[i])
		attr := slog.String(name, logValue(name, args[i+1]))
		attrs = append(attrs, attr)
		if name == "peer" || name == "target" || name == "server-id" || name == "from" {
			key = append(key, attr.Value.String())
		}
	}
	if to >= slog.LevelWarn {
		skipped, ok := r.speak(strings.Join(key, " "))
		if !ok {
			return
		}
		if skipped > 0 {
			attrs = append(attrs, slog.Int("not_repeated", skipped))
		}
	}
	r.logger.LogAttrs(ctx, to, "raft: "+msg, attrs...)
}

// speak reports whether it is time to say this again, and how often it was not said.
func (r *raftLog) speak(key string) (skipped int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.said[key]
	if said == nil {
		said = &repeat{}
		r.said[key] = said
	}
	if !said.last.IsZero() && time.Since(said.last) < quietFor {
		said.skipped++
		return 0, false
	}
	skipped, said.skipped = said.skipped, 0
	said.last = time.Now()
	return skipped, true
}

// slogLevel keeps raft's own levels but for its errors, which are a peer it cannot reach far more often than they are
// something for a person to do.
func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error, hclog.Warn:
		return slog.LevelWarn
	case hclog.Info:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// logValue renders a value, except what could hold a command: raft prints a message it cannot place in full, and with it
// whatever was being replicated.
func logValue(key string, v any) string {
	if key == "command" {
		return "(withheld)"
	}
	if f, ok := v.(hclog.Format); ok && len(f) > 0 {
		if layout, ok := f[0].(string); ok {
			return fmt.Sprintf(layout, f[1:]...)
		}
	}
	return fmt.Sprint(v)
}
