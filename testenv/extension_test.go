package testenv_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

const extensible = `version: 3
rules:
  - name: bytes
    service: payments
    requesters: [group:engineers]
    permissions: [tcp]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
    max_extended: 2h
`

// TestExtensionKeepsConnections: a connection through a proxy lives on over the end
// that its grant and its certificate had, once others have approved that the grant
// lives longer, and is cut at the end that it has then.
func TestExtensionKeepsConnections(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{Policy: extensible})
	p := tcpProxy(env)
	g := env.Approve("bob", env.Request("alice", "payments", 20*time.Second, "tcp")).Grant
	var clock ahead
	c := env.Connector(p, testenv.ConnectorOptions{Who: "alice", Grant: g.ID, TCP: true, Now: clock.now})
	busy := newEcho(t, c.Address())
	busy.say("hello")
	first, err := c.Source.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.Leaf.NotAfter.After(g.ExpiresAt) {
		t.Fatalf("the first certificate ends at %s, its grant at %s", first.Leaf.NotAfter, g.ExpiresAt)
	}

	r, err := env.Client("alice").ExtendGrant(t.Context(), g.ID, api.ExtendInput{Duration: api.Duration(8 * time.Second), Reason: "not done"})
	if err != nil {
		t.Fatal(err)
	}
	if r.State != api.RequestPending || r.Extends == nil || !r.Extends.From.Equal(g.ExpiresAt) {
		t.Fatalf("%+v", r)
	}
	longer := env.Approve("bob", r)
	end := g.ExpiresAt.Add(8 * time.Second)
	if longer.Grant == nil || longer.Grant.ID != g.ID || !longer.Grant.ExpiresAt.Equal(end) || len(longer.Grant.Extensions) != 1 {
		t.Fatalf("%+v", longer.Grant)
	}
	clock.by.Store(int64(time.Until(first.Leaf.NotAfter) - time.Second)) // a renewal is due
	env.Eventually("the certificate is renewed up to the new end", func() bool {
		now, err := c.Source.Certificate(t.Context())
		return err == nil && now.Leaf.NotAfter.After(first.Leaf.NotAfter) && !now.Leaf.NotAfter.After(end)
	})
	clock.by.Store(0)
	env.Eventually("it is proven in band", func() bool { return strings.Contains(accessLog(t, p), `"kind":"renewal"`) })

	for time.Now().Before(first.Leaf.NotAfter.Add(2 * time.Second)) {
		busy.say("still here")
		time.Sleep(10 * time.Millisecond)
	}
	for err = nil; err == nil; time.Sleep(10 * time.Millisecond) {
		err = busy.exchange("still here")
	}
	// A second is what is promised, and measured by the proxy's own tests; the rest
	// is for a busy machine. Certificates end in whole seconds.
	if late := time.Since(end); late < -time.Second || late > 10*time.Second {
		t.Errorf("cut %s after the new end with %v", late, err)
	}
	refused(t, c.Address())
	time.Sleep(time.Until(end)) // its last certificate may have ended up to a second before
	_, err = env.Client("alice").ExtendGrant(t.Context(), g.ID, api.ExtendInput{Duration: api.Duration(8 * time.Second), Reason: "not done"})
	if err == nil {
		t.Error("what has ended was extended")
	}
}
