package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile(%v, %v) = %v, want %v", values, q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing = %v, want 0", got)
	}
}

func TestSignificant(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1234.5: "1234", 12.34: "12.3", 1.234: "1.23", 0.5: "0.5", 0.01234: "0.0123"} {
		if got := significant(v); got != want {
			t.Errorf("significant(%v) = %q, want %q", v, got, want)
		}
	}
}

// The figures are worth nothing if the CPU they divide by is not the process's.
func TestCPUIsMeasured(t *testing.T) {
	before, err := cpuOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		after, err := cpuOf(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after > before {
			return
		}
	}
	t.Error("ten seconds of work are not counted")
}

// The figures that a release is held against are printed under the names that
// docs/benchmarks.md has for them, and are missing when their peer is.
func TestProxyFigures(t *testing.T) {
	page, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	certs, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := &report{out: &out, log: io.Discard}
	for _, c := range contests(t.Context(), certs) {
		c.floor = "" // needs no peer
		if err := c.run(r, nil); err != nil {
			t.Fatal(err)
		}
	}
	printed := make(map[string]bool)
	for line := range strings.Lines(out.String()) {
		name, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		if what != "missing" {
			t.Errorf("%q without peers", line)
		}
		printed[name] = true
	}
	for _, name := range []string{
		"proxy.conn.cpu_vs_nginx", "proxy.http1.cpu_vs_nginx.saturated", "proxy.http1.cpu_vs_nginx.paced", "proxy.http1.p50_vs_nginx.paced",
		"proxy.http2.cpu_vs_nginx", "proxy.http2.cpu_vs_haproxy", "proxy.grpc.cpu_vs_nginx", "proxy.tcp.cpu_vs_best",
	} {
		if !printed[name] {
			t.Errorf("%s is not printed", name)
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("%s is not in docs/benchmarks.md", name)
		}
	}
}

// What the ratio over the crypto floor is divided by must be some time.
func TestCryptoFloor(t *testing.T) {
	got, err := cryptoFloor(200)
	if err != nil || got <= 0 || got > 0.1 {
		t.Errorf("%v s a handshake, %v", got, err)
	}
}
