package raftstore

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestRaftLog(t *testing.T) {
	var text strings.Builder
	l := newRaftLogger(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelInfo}))).With("id", 7)
	l.Info("started", "servers", hclog.Fmt("%d of %d", 2, 3))
	l.Debug("not asked for")
	l.Error("got unexpected command", "command", hclog.Fmt("%#v", struct{ Data string }{"secret"}))
	for range 5 {
		l.Warn("failed to contact", "server-id", "n2")
	}
	l.Warn("failed to contact", "server-id", "n3")
	got := text.String()
	for _, want := range []string{`level=INFO msg="raft: started" id=7 servers="2 of 3"`, "command=(withheld)", "server-id=n3"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the log:\n%s", want, got)
		}
	}
	for _, bad := range []string{"secret", "not asked for", "level=ERROR"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q is in the log:\n%s", bad, got)
		}
	}
	if n := strings.Count(got, "server-id=n2"); n != 1 {
		t.Errorf("one warning was said %d times:\n%s", n, got)
	}
}
