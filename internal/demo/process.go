package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is one long-running part: a control node, the proxy or the upstream.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// launch starts the binary with args; what it says goes to a log file. It
// lives until it is stopped or killed, whatever becomes of ctx.
func (p *place) launch(ctx context.Context, name string, args ...string) (*process, error) {
	logFile := p.path(name + ".log")
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child has its own
	cmd := exec.CommandContext(context.WithoutCancel(ctx), p.binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = p.environ("")
	// A terminal's Ctrl-C goes to the whole process group: the parts would die
	// at once and in no order, before this process could say so.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	pr := &process{name: name, cmd: cmd, log: logFile, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(pr.done) }()
	return pr, nil
}

// kill ends the process as a power cut would.
func (pr *process) kill() {
	_ = pr.cmd.Process.Kill() // it may be gone
	<-pr.done
}

// stop asks the process to end, and kills it when it does not.
func (pr *process) stop() {
	_ = pr.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-pr.done:
	case <-time.After(10 * time.Second):
		pr.kill()
	}
}

// ended returns an error with the end of the log when the process is gone.
func (pr *process) ended() error {
	select {
	case <-pr.done:
	default:
		return nil
	}
	text, err := os.ReadFile(pr.log)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("%s has ended; the end of its log:\n%s", pr.name, strings.Join(lines[max(0, len(lines)-5):], "\n"))
}

// environ is this process's environment without what would change how the
// binary behaves, and with an identity when one is given.
func (p *place) environ(identity string) []string {
	env := []string{"NO_COLOR=1", "HALLPASS_SERVER=" + strings.Join(p.Servers(), ",")}
	if identity != "" {
		env = append(env, "HALLPASS_IDENTITY="+p.Identity(identity))
	}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "HALLPASS_") {
			env = append(env, kv)
		}
	}
	return env
}

// answer is what a command printed and how it ended.
type answer struct {
	stdout, stderr string
	status         int
}

// cli runs one hallpass command as the person would who has that identity.
func (p *place) cli(ctx context.Context, as string, args ...string) (answer, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, p.binary, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = p.environ(as), p.dir, &stdout, &stderr
	err := cmd.Run()
	a := answer{stdout: stdout.String(), stderr: strings.TrimSpace(stderr.String())}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		a.status = exit.ExitCode()
		err = nil
	}
	return a, err
}

// must is cli for a command that has to succeed.
func (p *place) must(ctx context.Context, as string, args ...string) (string, error) {
	a, err := p.cli(ctx, as, args...)
	if err == nil && a.status != 0 {
		err = fmt.Errorf("exit status %d: %s", a.status, a.stderr)
	}
	if err != nil {
		return "", fmt.Errorf("hallpass %s: %w", strings.Join(args, " "), err)
	}
	return a.stdout, nil
}

// read is must with the JSON answer decoded into out.
func (p *place) read(ctx context.Context, out any, as string, args ...string) error {
	text, err := p.must(ctx, as, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		return fmt.Errorf("hallpass %s: its JSON: %w", strings.Join(args, " "), err)
	}
	return nil
}

// ready waits until a part's health endpoint says so.
func ready(ctx context.Context, pr *process, url string) error {
	var last string
	for {
		if err := pr.ended(); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = string(text)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s is not ready: %s: %w", pr.name, last, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
