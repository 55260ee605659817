package control

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// A caller that the leader has come to know by a follower is one no longer than
// their certificate lasts, or than its issuer is believed.
func TestKnownCallerIsAskedAnew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leader, follower := c.leader(), c.follower()
	cert := c.identity(t, "spiffe://acme.test/user/alice", 4*time.Second)
	ask := func() int {
		status, _ := c.asserted(t, follower, leader, cert, "GET", "/v1/whoami", "")
		return status
	}
	if status := ask(); status != http.StatusOK {
		t.Fatalf("alice is answered %d", status)
	}
	c.until("the end of alice's certificate", func() bool { return ask() == http.StatusUnauthorized })
	if early := time.Until(cert.Leaf.NotAfter); early > 0 {
		t.Errorf("she is refused %s before the end of her certificate", early)
	}

	bob := c.identity(t, "spiffe://acme.test/user/bob")
	n := leader.n
	key := sha256.Sum256([]byte("bob's"))
	who, err := n.verifier.verify(chainOf(t, bob))
	must(t, err)
	n.callers.put(key, who)
	if got, err := n.forwardedCaller([]string{"bob's"}); err != nil || got != who {
		t.Fatalf("a known caller is not remembered: %v, %v", got, err)
	}
	who.checked.Store(who.checked.Load() + 1) // of another state, in which the chain does not verify
	who.chain = chainOf(t, cert)
	if got, err := n.forwardedCaller([]string{"bob's"}); err == nil {
		t.Errorf("%s is still a caller", got.id)
	}
}

func chainOf(t *testing.T, cert tls.Certificate) []*x509.Certificate {
	t.Helper()
	chain, err := x509.ParseCertificates(bytes.Join(cert.Certificate, nil))
	must(t, err)
	return chain
}

func TestCallersAreBounded(t *testing.T) {
	var c callerCache
	for i := range 3 * maxCallers {
		c.put(sha256.Sum256([]byte(time.Duration(i).String())), &caller{})
		if len(c.known) > maxCallers {
			t.Fatalf("%d callers are remembered", len(c.known))
		}
	}
}

// What a command is refused for beforehand is read after everything that was
// acknowledged; what it is let pass for need not be.
func TestOnlyANoIsLookedUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	alice := api.Call{Caller: api.Caller{ID: spiffeid.RequireFromString("spiffe://acme.test/user/alice")}}
	no := errors.New("no")
	look := func(answers ...error) (looks int, err error) {
		err = c.leader().n.look(t.Context(), alice, func(approval.State) error {
			looks++
			return answers[min(looks, len(answers))-1]
		})
		return looks, err
	}
	if looks, err := look(nil); looks != 1 || err != nil {
		t.Errorf("a yes: %v after %d looks", err, looks)
	}
	if looks, err := look(no, nil); looks != 2 || err != nil {
		t.Errorf("a no that was out of date: %v after %d looks", err, looks)
	}
	if looks, err := look(no); looks != 2 || !errors.Is(err, no) {
		t.Errorf("a no: %v after %d looks", err, looks)
	}
	// Alone, it cannot know whether its no is the last word.
	leader := c.leader()
	for _, r := range c.live() {
		if r != leader {
			c.crash(r.ID())
		}
	}
	if err := leader.n.look(t.Context(), alice, func(approval.State) error { return no }); !errors.Is(err, api.ErrNoLeader) {
		t.Errorf("a no without a quorum: %v", err)
	}
}
