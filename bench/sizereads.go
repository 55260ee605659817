package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/demo"
)

const (
	readLanes = 8
	readTurn  = 2 * time.Second
	readItems = 20 // requests of alice's, half of them grants, in both clusters

	wakeRounds = 40
)

// readable is a cluster that is read from.
type readable struct {
	name       string
	stage      *demo.Stage
	confs      []*tls.Config
	alice, bob *api.Client
	ids        []string
	note       func(format string, args ...any)
}

// reads compares reads of both clusters, which take turns: of what is named, of a
// list by an index, of all that one may see, and of one that waits for a change.
// What is read is the same: alice's last requests.
func (s *size) reads(ctx context.Context) error {
	var both []*readable
	for _, c := range []struct {
		name  string
		stage *demo.Stage
	}{{"empty", s.small}, {"seeded", s.big}} {
		q, err := newReadable(ctx, c.name, c.stage)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		q.note = s.r.note
		defer q.close()
		both = append(both, q)
	}
	for _, kind := range []struct {
		name string
		path func(q *readable, i int) string
	}{
		{"get", func(q *readable, i int) string { return "/v1/requests/" + q.ids[i%len(q.ids)] }},
		{"grant", func(q *readable, i int) string { return "/v1/grants/" + q.ids[i%(len(q.ids)/2)] }},
		{"list", func(*readable, int) string { return "/v1/requests?requester=spiffe://acme.test/user/alice&limit=10" }},
		{"pending", func(*readable, int) string { return "/v1/requests?state=pending&limit=10" }},
		{"mine", func(*readable, int) string { return "/v1/requests" }},
	} {
		if err := s.compareReads(ctx, kind.name, both, kind.path); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return s.compareWakes(ctx, both)
}

func newReadable(ctx context.Context, name string, stage *demo.Stage) (q *readable, err error) {
	q = &readable{name: name, stage: stage}
	if q.confs, err = callers(stage); err != nil {
		return nil, err
	}
	q.confs = q.confs[:1] // alice is who reads
	for who, client := range map[string]**api.Client{"alice": &q.alice, "bob": &q.bob} {
		if *client, err = api.NewClient(api.ClientConfig{
			Servers: stage.Servers(), Identity: stage.Identity(who), Timeout: 10 * time.Second, RetryFor: 20 * time.Second,
		}); err != nil {
			return q, err
		}
	}
	for i := range readItems {
		r, err := q.alice.CreateRequest(ctx, api.RequestInput{
			Service: "payments", Permissions: []string{"GET /stream"}, Duration: api.Duration(time.Hour), Reason: "to be read",
		})
		if err != nil {
			return q, err
		}
		if i < readItems/2 {
			if _, err := q.bob.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash}); err != nil {
				return q, err
			}
		}
		q.ids = append(q.ids, r.ID)
	}
	return q, nil
}

func (q *readable) close() {
	for _, c := range []*api.Client{q.alice, q.bob} {
		if c != nil {
			c.Close()
		}
	}
}

// taken is what reads of one turn took.
type taken struct{ p50, p99, cpu float64 } // ms, ms, µs each

func (s *size) compareReads(ctx context.Context, kind string, both []*readable, path func(*readable, int) string) error {
	found := make(map[string][]taken)
	for turn := range s.r.pairs + 1 {
		for _, q := range both {
			t, err := q.readFor(ctx, path)
			if err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
			if turn > 0 {
				found[q.name] = append(found[q.name], t)
				s.r.note("reads, %-7s %-6s p50 %.2f ms, p99 %.2f ms, %.0f µs CPU each", kind, q.name, t.p50, t.p99, t.cpu)
			}
		}
	}
	for _, m := range []struct {
		name string
		of   func(taken) float64
	}{
		{"p50", func(t taken) float64 { return t.p50 }},
		{"p99", func(t taken) float64 { return t.p99 }},
		{"cpu", func(t taken) float64 { return t.cpu }},
	} {
		var all []float64
		for i, t := range found["seeded"] {
			all = append(all, m.of(t)/m.of(found["empty"][i]))
		}
		s.figure(fmt.Sprintf("control.reads_vs_empty.%s.%s", kind, m.name), median(all), "ratio")
	}
	return nil
}

// readFor has lanes read for one turn, each from the nodes in turn.
func (q *readable) readFor(ctx context.Context, path func(*readable, int) string) (t taken, err error) {
	nodes := newSpread(q.stage.Servers(), readLanes, q.confs...)
	defer nodes.close()
	read := func(ctx context.Context, lane, i int) error {
		node := nodes.nodes[(lane+i)%len(nodes.nodes)]
		return get(ctx, nodes.clients[lane%len(nodes.clients)], node+path(q, i))
	}
	for i := range len(nodes.nodes) { // connections are made before the clock starts
		if err := read(ctx, 0, i); err != nil {
			q.note("a first read of the %s cluster failed: %.200v", q.name, err)
		}
	}
	before, err := cpuOfPIDs(q.stage.PIDs())
	if err != nil {
		return t, err
	}
	var mu sync.Mutex
	var all []float64
	var failed atomic.Int64
	errs := make([]error, readLanes)
	var lanes sync.WaitGroup
	for lane := range readLanes {
		lanes.Go(func() {
			var mine []float64
			good := time.Now()
			for i, end := 0, time.Now().Add(readTurn); time.Now().Before(end); i++ {
				begin := time.Now()
				err := read(ctx, lane, i)
				switch {
				case err == nil:
					good = time.Now()
					mine = append(mine, good.Sub(begin).Seconds()*1e3)
				case time.Since(good) > patience || ctx.Err() != nil:
					errs[lane] = err
					return
				default:
					failed.Add(1)
					time.Sleep(10 * time.Millisecond)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	lanes.Wait()
	if n := failed.Load(); n > 0 {
		q.note("reads of the %s cluster: %d failed, and count for nothing: on a busy machine a leader is lost now and then", q.name, n)
	}
	after, cpuErr := cpuOfPIDs(q.stage.PIDs())
	if err := errors.Join(append(errs, cpuErr)...); err != nil {
		return t, err
	}
	if len(all) == 0 {
		return t, errors.New("nothing was read")
	}
	return taken{quantile(all, 0.5), quantile(all, 0.99), (after - before).Seconds() / float64(len(all)) * 1e6}, nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.200s", url, resp.Status, text)
	}
	return err
}

// compareWakes times reads that wait: from the start of a write until a reader who
// waited for it has its answer.
func (s *size) compareWakes(ctx context.Context, both []*readable) error {
	var all, slow []float64
	for range s.r.pairs {
		var p50, p99 [2]float64
		for i, q := range both {
			took, err := q.wakes(ctx)
			if err != nil {
				return fmt.Errorf("wake: %s: %w", q.name, err)
			}
			p50[i], p99[i] = median(took), quantile(took, 0.99)
			s.r.note("reads, wake    %-6s p50 %.2f ms, p99 %.2f ms, the write included", q.name, p50[i], p99[i])
		}
		all, slow = append(all, p50[1]/p50[0]), append(slow, p99[1]/p99[0])
	}
	s.figure("control.reads_vs_empty.wake.p50", median(all), "ratio")
	s.figure("control.reads_vs_empty.wake.p99", median(slow), "ratio")
	return nil
}

func (q *readable) wakes(ctx context.Context) (took []float64, err error) {
	for range wakeRounds {
		r, err := q.alice.CreateRequest(ctx, api.RequestInput{
			Service: "payments", Permissions: []string{"GET /stream"}, Duration: api.Duration(time.Hour), Reason: "to be withdrawn",
		})
		if err != nil {
			return nil, err
		}
		woken := make(chan error, 1)
		go func() { // ends with the answer
			_, err := q.bob.WaitRequest(ctx, r.ID)
			woken <- err
		}()
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
		begin := time.Now()
		if _, err := q.alice.CancelRequest(ctx, r.ID); err != nil {
			return nil, err
		}
		if err := <-woken; err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin).Seconds()*1e3)
	}
	return took, nil
}
