package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hallpass": func() { os.Exit(realMain()) }})
}

// TestScripts runs the scenarios of testdata/script: what the commands that need no cluster
// print, and with which status they end.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"status": wantStatus},
	})
}

// wantStatus is `status N PROGRAM ARG…`: exec that demands an exit status.
func wantStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

// The configuration files that are shipped are ones that the commands take.
func TestShippedConfigurations(t *testing.T) {
	compose := filepath.Join("..", "..", "deploy", "compose")
	if err := validateFile("proxy", filepath.Join(compose, "proxy.yaml")); err != nil {
		t.Error(err)
	}
	s, err := loadServer(filepath.Join(compose, "server.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.Node = "n1" // HALLPASS_NODE in docker-compose.yml
	if err := s.check(); err != nil {
		t.Error(err)
	}
	if _, err := readSeed(t.Context(), filepath.Join(compose, "seed.yaml")); err != nil {
		t.Error(err)
	}
}
