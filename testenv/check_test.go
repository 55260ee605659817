package testenv

import (
	"testing"
	"time"
)

// A certificate that no quorum committed must not get past the check.
func TestCheckInvariantsBites(t *testing.T) {
	t.Parallel()
	env := Start(t, Options{Nodes: 1})
	env.Grant("alice", "payments", time.Minute, "GET /accounts/**")
	if err := env.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	env.handed = append(env.handed, handed{grant: "none", leaf: env.Certificate("alice").Leaf})
	if err := env.CheckInvariants(); err == nil {
		t.Error("a certificate from nowhere is not noticed")
	}
	env.handed = env.handed[:1] // or the end of the test would notice it again
}
