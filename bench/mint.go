package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// mintLanes ask for certificates at a time, for mintTurn.
const (
	mintLanes = 128
	mintTurn  = 3 * time.Second
)

// mints has one grant's certificate made again and again.
type mints struct {
	*spread
	path string
	body []byte
}

func (m *mints) write(ctx context.Context, lane int) error {
	_, _, err := m.post(ctx, lane, m.path, http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}, m.body)
	return err
}

func (*mints) finish(context.Context) error { return nil }

// mint compares certificates a CPU second: of all three control nodes together,
// each certificate committed by a quorum before it is signed, and of one
// step-ca, which keeps them in its own store. Both verify who asks: we by the
// connection's certificate, step-ca by a token a certificate.
func (c *control) mint(ctx context.Context) error {
	const name = "control.mint_vs_stepca"
	binary, ok := c.r.peer("step-ca")
	if !ok {
		c.r.missing(name)
		return nil
	}
	theirs, err := startStepCA(ctx, c.r, binary)
	if err != nil {
		return err
	}
	defer theirs.process.stop()
	ours, err := c.minters(ctx)
	if err != nil {
		return err
	}
	defer ours.close()
	signers, err := theirs.signers(mintLanes)
	if err != nil {
		return err
	}
	defer signers.close()
	var found []float64
	for turn := range c.r.pairs + 1 {
		a, err := mintFor(ctx, ours, func() (time.Duration, error) { return cpuOfPIDs(c.PIDs()) })
		if err != nil {
			return err
		}
		b, err := mintFor(ctx, signers, theirs.process.cpu)
		if err != nil {
			return fmt.Errorf("step-ca: %w; it said: %.2000s", err, theirs.process.stderr.String())
		}
		if turn == 0 {
			continue // warm-up
		}
		found = append(found, b.cpu/a.cpu)
		c.r.note("mint: ours %.0f µs CPU each at %.0f a second, step-ca %.0f µs at %.0f", a.cpu*1e6, a.rate, b.cpu*1e6, b.rate)
	}
	c.r.figure(name, median(found), "ratio")
	return nil
}

// minted is what a turn came to.
type minted struct {
	cpu  float64 // seconds that one certificate takes
	rate float64 // certificates a second
}

func mintFor(ctx context.Context, w committer, cpu func() (time.Duration, error)) (minted, error) {
	before, err := cpu()
	if err != nil {
		return minted{}, err
	}
	begin := time.Now()
	done, err := repeat(ctx, mintLanes, mintTurn, w.write)
	if err != nil {
		return minted{}, err
	}
	took := time.Since(begin)
	after, err := cpu()
	if err != nil {
		return minted{}, err
	}
	if done.requests == 0 {
		return minted{}, errors.New("no certificate was made")
	}
	n := float64(done.requests)
	return minted{cpu: (after - before).Seconds() / n, rate: n / took.Seconds()}, nil
}

// minters has a grant made and asks for its certificates, as its subject.
func (c *control) minters(ctx context.Context) (*mints, error) {
	request, err := c.request(ctx, 30*time.Minute)
	if err != nil {
		return nil, err
	}
	if _, err := c.bob.DecideRequest(ctx, request.ID, api.DecisionInput{Decision: "approve", Hash: request.Hash}); err != nil {
		return nil, err
	}
	_, csr, err := key()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(api.CertificateInput{CSR: csr})
	if err != nil {
		return nil, err
	}
	confs, err := callers(c.Stage)
	if err != nil {
		return nil, err
	}
	return &mints{
		spread: newSpread(c.Servers(), mintLanes, confs[0]), path: "/v1/grants/" + request.ID + "/certificate", body: body,
	}, nil
}
