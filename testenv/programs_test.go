//go:build integration

package testenv_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const patience = time.Minute // for a program to end, on a busy machine

// shell is a folder in which other people's programs are run.
type shell struct {
	t   *testing.T
	dir string
}

// run runs a program and returns what it printed and how it ended.
func (s shell) run(name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("%s does not end: %w", name, ctx.Err())
	}
	return out.String(), errs.String(), err
}

// curl is a caller that has a certificate's folder and a plain curl.
type curl struct {
	shell
	version string // --http1.1 or --http2
}

// answer is what curl was told.
type answer struct {
	status int
	http   string // 1.1 or 2
	head   string
	body   []byte
	exit   error // how curl ended
	ended  time.Time
}

// try calls, and may do so in a goroutine of its own. The error is that curl's
// report cannot be read; an answer that broke off is an answer.
func (c curl) try(url string, args ...string) (answer, error) {
	out, err := os.MkdirTemp(c.dir, "answer")
	if err != nil {
		return answer{}, err
	}
	body, head := filepath.Join(out, "body"), filepath.Join(out, "head")
	all := append([]string{
		c.version, "-sS", "--path-as-is", "--cacert", "identity-bundle.pem", "--cert", "cert.pem", "--key", "key.pem",
		"-o", body, "-D", head, "-w", "%{http_code} %{http_version}",
	}, args...)
	printed, stderr, err := c.run("curl", append(all, url)...)
	a := answer{exit: err, ended: time.Now()}
	if _, err := fmt.Sscan(printed, &a.status, &a.http); err != nil {
		return a, fmt.Errorf("curl %s %s printed %q: %s: %w", c.version, url, printed, stderr, a.exit)
	}
	if text, err := os.ReadFile(head); err == nil {
		a.head = strings.ToLower(string(text))
	}
	if a.body, err = os.ReadFile(body); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return a, err
}

func (c curl) get(url string, args ...string) answer {
	c.t.Helper()
	a, err := c.try(url, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// want is get for an answer that can only have this status.
func (c curl) want(status int, url string, args ...string) answer {
	c.t.Helper()
	a := c.get(url, args...)
	if a.exit != nil || a.status != status || "--http"+a.http != c.version {
		c.t.Fatalf("%s %s: status %d by HTTP/%s, want %d: %v\n%s%.300s", c.version, url, a.status, a.http, status, a.exit, a.head, a.body)
	}
	return a
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%s: %d bytes of SHA-256 %x, want %d of %x", what, len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
}
