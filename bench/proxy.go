package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"
)

// turn is how long a server is asked to work in one turn.
const turn = 1500 * time.Millisecond

// contest is one kind of work that ours and its peers take turns at.
type contest struct {
	prefix, suffix string // of its figures: prefix + "cpu_vs_" + peer + suffix
	kind           string
	peers          []string
	p50            bool
	floor          string // the figure over the crypto floor
	load           func(s side) (work, error)
}

func contests(ctx context.Context, certs *pki) []contest {
	classic, hybrid, h2, raw := certs.clientTLS("http/1.1"), certs.clientTLS("http/1.1"), certs.clientTLS("h2"), certs.clientTLS()
	classic.CurvePreferences = []tls.CurveID{tls.X25519} // what all of them can do
	all := []string{"nginx", "haproxy", "caddy", "reverseproxy"}
	return []contest{
		{"proxy.conn.", "", kindHTTP, all, false, "proxy.conn.cpu_vs_crypto_floor", func(s side) (work, error) {
			return connect(ctx, s.address, classic, 4, turn)
		}},
		{"proxy.conn.", ".hybrid", kindHTTP, all, false, "", func(s side) (work, error) {
			return connect(ctx, s.address, hybrid, 4, turn)
		}},
		{"proxy.http1.", ".saturated", kindHTTP, all, false, "", func(s side) (work, error) {
			return saturate(ctx, s.address, classic, 16, turn)
		}},
		{"proxy.http1.", ".paced", kindHTTP, all, true, "", func(s side) (work, error) {
			return pace(ctx, s.address, classic, 16, 3000, turn)
		}},
		{"proxy.http2.", "", kindHTTP, all, false, "", func(s side) (work, error) {
			return streams(ctx, s.address, h2, 32, turn, false)
		}},
		{"proxy.grpc.", "", kindGRPC, all, false, "", func(s side) (work, error) {
			return streams(ctx, s.address, h2, 32, turn, true)
		}},
		{"proxy.tcp.", "", kindTCP, []string{"nginx", "haproxy"}, false, "", func(s side) (work, error) {
			return bulk(ctx, s.address, raw, 128<<20)
		}},
	}
}

// benchProxy compares the proxy with what it would stand in for: mutual TLS in, the
// same upstream behind all, an access log written by all.
func benchProxy(ctx context.Context, r *report) error {
	certs, err := newPKI(r.dir)
	if err != nil {
		return err
	}
	for _, kind := range []string{kindHTTP, kindGRPC, kindTCP} {
		if r.part != "" && r.part != kind && (kind != kindHTTP || !slices.Contains(partsOfHTTP(), r.part)) {
			continue
		}
		if err := benchKind(ctx, r, certs, kind); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	return nil
}

// partsOfHTTP are the parts of kind http, by the second word of their figures.
func partsOfHTTP() []string { return []string{"conn", "http1", "http2", "idle"} }

// wants says whether the figures that begin so are asked for.
func (r *report) wants(kind, prefix string) bool {
	return r.part == "" || r.part == kind || strings.HasPrefix(prefix, "proxy."+r.part+".")
}

func benchKind(ctx context.Context, r *report, certs *pki, kind string) error {
	word := upstreamWord
	if kind == kindTCP {
		word = tcpUpstreamWord
	}
	upstream, err := startUpstream(ctx, word)
	if err != nil {
		return err
	}
	defer upstream.process.stop()
	sides, stop, err := startAll(ctx, r, certs, kind, upstream.address)
	if err != nil {
		return err
	}
	defer stop()
	for _, c := range contests(ctx, certs) {
		if c.kind != kind || !r.wants(kind, c.prefix) {
			continue
		}
		if err := c.run(r, sides); err != nil {
			return fmt.Errorf("%s%s: %w", c.prefix, c.suffix, err)
		}
	}
	if kind != kindHTTP || !r.wants(kind, "proxy.idle.") {
		return nil
	}
	conf := certs.clientTLS("http/1.1")
	for _, s := range sides {
		kb, err := idle(ctx, s, conf)
		if err != nil {
			return fmt.Errorf("idle: %s: %w", s.name, err)
		}
		if name := "proxy.idle.kb"; s.name == sides[0].name {
			r.figure(name, kb, "KB")
		} else {
			r.figure(name+"."+s.name, kb, "KB")
		}
	}
	return nil
}

// run has all take turns and prints the medians of ours over each of theirs.
func (c contest) run(r *report, sides []side) error {
	cpu, p50 := make(map[string][]float64), make(map[string][]float64)
	var floor, best []float64
	for n := range r.pairs + 1 {
		var ours cost
		least := 0.0
		for i, s := range sides {
			got, err := measure(s, c.load)
			if err != nil {
				return err
			}
			if n == 0 {
				continue // warm-up
			}
			r.note("%s%s: %s %.2f µs CPU %s", c.prefix, c.suffix, s.name, got.cpu*1e6*c.unit(), c.each())
			if i == 0 {
				ours = got
				continue
			}
			cpu[s.name] = append(cpu[s.name], ours.cpu/got.cpu)
			p50[s.name] = append(p50[s.name], ours.p50/got.p50)
			if least == 0 || got.cpu < least {
				least = got.cpu
			}
		}
		if n > 0 && least > 0 {
			best = append(best, ours.cpu/least)
		}
		if n > 0 && c.floor != "" {
			f, err := cryptoFloor(2000)
			if err != nil {
				return err
			}
			r.note("%s: the floor is %.1f µs", c.floor, f*1e6)
			floor = append(floor, ours.cpu/f)
		}
	}
	for _, peer := range c.peers {
		ratio(r, c.cpuName(peer), cpu[peer])
		if c.p50 {
			ratio(r, c.p50Name(peer), p50[peer])
		}
	}
	if c.floor != "" {
		r.figure(c.floor, median(floor), "ratio")
	}
	if c.kind == kindTCP {
		ratio(r, c.cpuName("best"), best)
	}
	return nil
}

func (c contest) cpuName(peer string) string { return c.prefix + "cpu_vs_" + peer + c.suffix }
func (c contest) p50Name(peer string) string { return c.prefix + "p50_vs_" + peer + c.suffix }

// unit and each say of how much work the notes tell: of a MB of bytes, else of one.
func (c contest) unit() float64 {
	if c.kind == kindTCP {
		return 1e6
	}
	return 1
}

func (c contest) each() string {
	if c.kind == kindTCP {
		return "a MB"
	}
	return "each"
}

// ratio prints the median, or that the peer is missing.
func ratio(r *report, name string, ratios []float64) {
	if len(ratios) == 0 {
		r.missing(name)
		return
	}
	r.figure(name, median(ratios), "ratio")
}

// cost is what one piece of work took.
type cost struct{ cpu, p50 float64 } // seconds

func measure(s side, load func(side) (work, error)) (cost, error) {
	before, err := s.process.cpu()
	if err != nil {
		return cost{}, err
	}
	done, err := load(s)
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w; it said: %s", s.name, err, s.process.stderr.String())
	}
	after, err := s.process.cpu()
	if err != nil {
		return cost{}, err
	}
	if done.requests == 0 {
		return cost{}, fmt.Errorf("%s: nothing was answered", s.name)
	}
	latencies := make([]float64, len(done.latencies))
	for i, l := range done.latencies {
		latencies[i] = l.Seconds()
	}
	return cost{cpu: (after - before).Seconds() / float64(done.requests), p50: median(latencies)}, nil
}
