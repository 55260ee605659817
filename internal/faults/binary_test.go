//go:build faults

package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binaries are built once, before any test.
type binaries struct{ faulty, plain string }

var built binaries

// builtIn names the folder in which a test that runs itself again has built them.
const builtIn = "FAULTS_BUILT"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if dir := os.Getenv(builtIn); dir != "" {
			built = binariesIn(dir)
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "hallpass-faults-")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			built, err = build(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
			return 1
		}
		return m.Run()
	}())
}

func binariesIn(dir string) binaries {
	return binaries{faulty: filepath.Join(dir, "faulty"), plain: filepath.Join(dir, "hallpass")}
}

// build makes the binary with failpoints, and the one that ships, in which there are none.
func build(dir string) (b binaries, err error) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return b, err
	}
	overlay, err := Overlay(root, dir, Edits())
	if err != nil {
		return b, err
	}
	b = binariesIn(dir)
	for _, args := range [][]string{{"-overlay", overlay, "-o", b.faulty}, {"-o", b.plain}} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-trimpath"}, args...), "./cmd/hallpass")...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	return b, nil
}

// What ships has no failpoint, nor anything that could bring one in.
func TestTheBinaryThatShipsHasNoFailpoint(t *testing.T) {
	for binary, want := range map[string]bool{built.faulty: true, built.plain: false} {
		out, err := exec.CommandContext(t.Context(), "go", "tool", "nm", binary).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(out), "internal/faults/failpoint"); got != want {
			t.Errorf("%s has failpoints: %t, want %t", filepath.Base(binary), got, want)
		}
	}
}
