package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is set by the linker: -X main.version=….
var version = "unknown"

func main() {
	os.Exit(realMain())
}

// realMain is main with a status to return, so that deferred work is done.
func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once, whatever hangs.
	context.AfterFunc(ctx, stop)
	a := &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		environ: os.Environ, now: time.Now,
	}
	return a.run(ctx, os.Args[1:])
}
