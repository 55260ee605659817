//go:build compose

package deploy

import (
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/ledger"
)

// patience is how long a write is repeated, under its one Idempotency-Key. A quorum is back well
// before: also when everything is stopped and started again.
const patience = 2 * time.Minute

// writing is the ledger of what the cluster says yes to while things break.
type writing struct{ *ledger.Ledger }

// write starts a writer for each of the example's engineers, who say in their reasons when it was. They
// bear with everything that happens to the cluster.
func write(t *testing.T, c *cluster, when string) *writing {
	t.Helper()
	conf := ledger.Config{Pause: 50 * time.Millisecond} // enough rounds to hit every fault, few enough to read back
	for _, name := range []string{"alice", "erin"} {
		conf.Writers = append(conf.Writers, c.writer(t, name+" "+when, name))
	}
	return open(t, conf)
}

// writeAtFullPace starts writers that pause for nothing.
func writeAtFullPace(t *testing.T, c *cluster) *writing {
	t.Helper()
	var conf ledger.Config
	for i := range 2 {
		for _, name := range []string{"alice", "erin"} {
			conf.Writers = append(conf.Writers, c.writer(t, fmt.Sprintf("%s in a hurry, %d,", name, i), name))
		}
	}
	return open(t, conf)
}

// writer asks as one of the engineers, and has bob decide.
func (c *cluster) writer(t *testing.T, name, who string) ledger.Writer {
	t.Helper()
	return ledger.Writer{Name: name, Asker: c.client(t, who, c.members...), Owner: c.client(t, "bob", c.members...), Voter: "bob"}
}

// open starts writers, who end with the test.
func open(t *testing.T, conf ledger.Config) *writing {
	t.Helper()
	conf.Ask = api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(30 * time.Minute)}
	ctx, cancel := context.WithCancel(t.Context())
	l := &writing{ledger.Open(ctx, conf)}
	t.Cleanup(func() {
		cancel()
		end, done := context.WithTimeout(context.WithoutCancel(ctx), bearable)
		defer done()
		_, _ = l.Close(end) // the test has said what there is to say
	})
	return l
}

// client calls the API as a person, at the given nodes, as the commands do but for their patience: how
// long a busy machine takes is not what is tested.
func (c *cluster) client(t *testing.T, who string, at ...string) *api.Client {
	t.Helper()
	servers := make([]string, 0, len(at))
	for _, n := range at {
		servers = append(servers, c.url(n))
	}
	client, err := api.NewClient(api.ClientConfig{
		Servers: servers, Identity: filepath.Join(c.people, who), Timeout: 5 * time.Second, RetryFor: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// grows waits until both writers have got through whole rounds that began after now.
func (l *writing) grows(t *testing.T) {
	t.Helper()
	want, _ := l.Rounds() // why one gave up comes again below
	want += 8
	within(t, patience, "the writers go on", func() error {
		if done, err := l.Rounds(); done < want && err == nil {
			return fmt.Errorf("%d rounds done, want %d", done, want)
		}
		return nil
	})
	if _, err := l.Rounds(); err != nil {
		t.Fatal(err)
	}
}

// close lets the writers end their rounds and gives what was acknowledged.
func (l *writing) close(t *testing.T) []ledger.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all, err := l.Close(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// newest gives the last certificate that was handed out and not revoked, and the last one whose
// revocation was acknowledged.
func (l *writing) newest(t *testing.T) (live, revoked tls.Certificate) {
	t.Helper()
	for _, e := range slices.Backward(l.Entries()) {
		switch n := len(e.Certificates); {
		case n == 0:
		case e.Revoked && revoked.Leaf == nil:
			revoked = e.Certificates[n-1]
		case e.Live() && live.Leaf == nil:
			live = e.Certificates[n-1]
		}
	}
	if live.Leaf == nil || revoked.Leaf == nil {
		t.Fatal("the ledger holds no live certificate, or no revoked one")
	}
	return live, revoked
}
