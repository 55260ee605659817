package control

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
)

// A node that has just been elected has not applied everything yet. The index that it names belongs
// to the answer, which waits for that: whoever waits for another node to come to it would otherwise
// wait for too little.
func TestTheIndexOfTheClusterIsAsNewAsTheAnswer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	before := c.leader().Store().Index()
	var ids []string
	for _, r := range c.live() {
		ids = append(ids, r.ID())
	}
	for _, id := range ids {
		c.crash(id) // so that each has its state to make anew
	}
	answers := make(chan uint64, len(ids))
	for _, id := range ids {
		b := backend{c.start(id).n}
		var call api.Call
		call.Caller.ID = spiffeid.RequireFromString("spiffe://acme.test/user/bob")
		go func() { // ends with the node
			for b.stopping.Err() == nil {
				if out, err := b.Cluster(b.stopping, call); err == nil {
					answers <- out.Index
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
	}
	select {
	case index := <-answers:
		if index < before {
			t.Errorf("the index is %d, and was %d before", index, before)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody leads")
	}
}
