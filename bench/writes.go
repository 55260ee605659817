package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/internal/demo"
)

// What a turn of one cluster takes, and how many callers write at a time.
const writeTurn = 2500 * time.Millisecond

func writerCounts() []int { return []int{1, 16, 128} }

// committer is a cluster that is written to.
type committer interface {
	write(ctx context.Context, lane int) error
	finish(ctx context.Context) error // takes back what would be in the next turn's way
	close()
}

// contestant is one of the clusters that take turns.
type contestant struct {
	name    string
	writers func(lanes int) committer
	cpu     func() (time.Duration, error)
}

// label is what a contestant is called in a note.
func (c contestant) label() string {
	if c.name == "etcd" {
		return c.name
	}
	return "ours" + c.name
}

// writes compares committed writes: a request for access, or its withdrawal,
// over our API, and a put of as many bytes as the two replicate on average, over
// etcd's. Three nodes each, on one disk, mutual TLS everywhere, and each writer
// goes round the nodes.
func (c *control) writes(ctx context.Context) error {
	r := c.r
	payload, err := requestBytes()
	if err != nil {
		return err
	}
	walStage, err := demo.NewStage(demo.Options{Binary: r.binary, Out: r.log, LogStore: "wal", Unpaced: true})
	if err != nil {
		return err
	}
	defer walStage.Close()
	if err := walStage.StartControl(ctx); err != nil {
		return err
	}
	all := make([]contestant, 0, 3)
	for _, ours := range []struct {
		name  string
		stage *demo.Stage
	}{{"", c.Stage}, {".wal", walStage}} {
		name, s := ours.name, ours.stage
		confs, err := callers(s)
		if err != nil {
			return err
		}
		all = append(all, contestant{
			name: name, cpu: func() (time.Duration, error) { return cpuOfPIDs(s.PIDs()) },
			writers: func(lanes int) committer { return newRequests(s.Servers(), lanes, confs) },
		})
	}
	if binary, ok := r.peer("etcd"); ok {
		certs, err := newPKI(r.dir)
		if err != nil {
			return err
		}
		e, err := startEtcd(ctx, binary, certs)
		if err != nil {
			return err
		}
		defer e.stop()
		r.note("a write to etcd is a put of %d bytes", payload)
		all = append(all, contestant{
			name: "etcd", cpu: e.cpu,
			writers: func(lanes int) committer { return e.writers(lanes, payload) },
		})
	}
	return compareWrites(ctx, r, all)
}

func compareWrites(ctx context.Context, r *report, all []contestant) error {
	for _, lanes := range writerCounts() {
		rates := make(map[string][]float64)
		for turn := range r.pairs + 1 {
			for _, c := range all {
				rate, err := writeFor(ctx, r, c, lanes, turn == 0)
				if err != nil {
					return fmt.Errorf("writes%s, %d writers: %w", c.name, lanes, err)
				}
				if c.name == "etcd" && rate == 0 {
					return fmt.Errorf("writes, %d writers: etcd committed nothing", lanes)
				}
				if turn > 0 {
					rates[c.name] = append(rates[c.name], rate)
				}
			}
		}
		for _, suffix := range []string{"", ".wal"} {
			name := fmt.Sprintf("control.writes_vs_etcd.w%d%s", lanes, suffix)
			if len(rates["etcd"]) == 0 {
				r.missing(name)
				continue
			}
			r.figure(name, median(ratios(rates[suffix], rates["etcd"])), "ratio")
		}
		if lanes == 1 {
			if err := r.floors(rates); err != nil {
				return err
			}
		}
	}
	return nil
}

func ratios(ours, theirs []float64) []float64 {
	out := make([]float64, len(ours))
	for i := range out {
		out[i] = ours[i] / theirs[i]
	}
	return out
}

// writeFor has a cluster written to for one turn and returns its rate.
func writeFor(ctx context.Context, r *report, c contestant, lanes int, warmUp bool) (float64, error) {
	w := c.writers(lanes)
	defer w.close()
	// Connections are made before the clock starts.
	if _, err := repeat(ctx, lanes, 200*time.Millisecond, w.write); err != nil {
		return 0, err
	}
	before, err := c.cpu()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	done, err := repeat(ctx, lanes, writeTurn, w.write)
	if err != nil {
		return 0, err
	}
	took := time.Since(begin)
	after, err := c.cpu()
	if err != nil {
		return 0, err
	}
	if err := w.finish(ctx); err != nil {
		return 0, err
	}
	if done.failed > 0 {
		r.note("writes, %3d writers, %-8s %d calls failed, the first: %.300v", lanes, c.label(), done.failed, done.failure)
	}
	rate := float64(done.requests) / took.Seconds()
	if !warmUp && done.requests > 0 {
		r.note("writes, %3d writers, %-8s %6.0f/s, %4.0f µs CPU each", lanes, c.label(), rate,
			(after-before).Seconds()/float64(done.requests)*1e6)
	}
	return rate, nil
}

// callers are the TLS settings of two people who may ask for access.
func callers(stage *demo.Stage) ([]*tls.Config, error) {
	var confs []*tls.Config
	for _, name := range []string{"alice", "bob"} {
		dir := stage.Identity(name)
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(filepath.Join(dir, "identity-bundle.pem"))
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, errors.New("the identity bundle holds no certificate")
		}
		confs = append(confs, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}})
	}
	return confs, nil
}

// requests asks for access and withdraws it, in turn, so that however long it
// goes on nobody has more requests pending than may be.
type requests struct {
	*spread
	open [][]byte // by lane: the id of the request to withdraw, or nil
}

func newRequests(nodes []string, lanes int, confs []*tls.Config) *requests {
	return &requests{spread: newSpread(nodes, lanes, confs...), open: make([][]byte, lanes)}
}

const requestBody = `{"service":"payments","permissions":["GET /stream"],"duration":"30m","reason":"bench"}`

func (q *requests) write(ctx context.Context, lane int) error {
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	if id := q.open[lane]; id != nil {
		q.open[lane] = nil // whatever comes of it
		_, _, err := q.post(ctx, lane, "/v1/requests/"+string(id)+"/cancel", header, nil)
		return err
	}
	_, answer, err := q.post(ctx, lane, "/v1/requests", header, []byte(requestBody))
	if err != nil {
		return err
	}
	_, rest, ok := bytes.Cut(answer, []byte(`"id":"`))
	id, _, closed := bytes.Cut(rest, []byte(`"`))
	if !ok || !closed {
		return fmt.Errorf("no id in %.200s", answer)
	}
	q.open[lane] = id
	return nil
}

// finish withdraws what is open: it counts towards how many requests a caller
// may have pending, in the next turn too.
func (q *requests) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for lane := range q.open {
		for id := q.open[lane]; id != nil; q.open[lane] = id {
			err := q.write(ctx, lane)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// requestBytes is how many bytes a write of ours replicates, on average.
func requestBytes() (int, error) {
	const id, alice = "0199f3a0-5c1e-7a3b-9c4d-2e5f60718293", "spiffe://acme.test/user/alice"
	total := 0
	for _, body := range []approval.Body{
		approval.CreateRequest{
			ID: id, Subject: alice, Service: "payments", Permissions: []string{"GET /stream"}, Reason: "bench",
			Duration: 1_800_000, PolicyRevision: 1, DirectoryRevision: 1,
		},
		approval.CancelRequest{Request: id},
	} {
		data, err := approval.Command{ID: id, Now: time.Now().UnixMilli(), Node: "n1", Actor: alice, Body: body}.Encode()
		if err != nil {
			return 0, err
		}
		total += len(data)
	}
	return total / 2, nil
}
