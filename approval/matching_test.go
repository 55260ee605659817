package approval

import (
	"testing"

	"pgregory.net/rapid"
)

// mostSeats tries all ways to seat persons from number p on.
func mostSeats(free []string, groups []map[string]bool, p int) int {
	if p == len(groups) {
		return 0
	}
	most := mostSeats(free, groups, p+1)
	for i, g := range free {
		if groups[p][g] {
			free[i] = ""
			most = max(most, 1+mostSeats(free, groups, p+1))
			free[i] = g
		}
	}
	return most
}

// TestMatch compares matching with trying everything.
func TestMatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c"}
		var requirements []Requirement
		for _, n := range names[:rapid.IntRange(1, 3).Draw(t, "groups")] {
			requirements = append(requirements, Requirement{Group: n, Approvals: rapid.IntRange(1, 2).Draw(t, "approvals")})
		}
		var groups []map[string]bool
		for range rapid.IntRange(0, 6).Draw(t, "persons") {
			in := map[string]bool{}
			for _, n := range names {
				if rapid.Bool().Draw(t, "member") {
					in[n] = true
				}
			}
			groups = append(groups, in)
		}
		all := seats(requirements)
		var free []string
		for _, s := range all {
			free = append(free, s.group)
		}
		want := mostSeats(free, groups, 0)
		got := match(all, groups)
		if got != want {
			t.Fatalf("%d seats filled, %d can be", got, want)
		}
		seated := map[int]bool{}
		filled := 0
		for _, s := range all {
			if s.person < 0 {
				continue
			}
			filled++
			if seated[s.person] || !groups[s.person][s.group] {
				t.Fatalf("person %d on a seat of %s: twice, or not a member", s.person, s.group)
			}
			seated[s.person] = true
		}
		if filled != got {
			t.Fatalf("%d seats filled, it says %d", filled, got)
		}
	})
}

func TestMatchIsBounded(t *testing.T) {
	groups := make([]map[string]bool, MaxDecisions)
	for i := range groups {
		groups[i] = map[string]bool{"a": true}
	}
	all := seats([]Requirement{{Group: "a", Approvals: MaxDecisions / 2}, {Group: "b", Approvals: MaxDecisions / 2}})
	if got := match(all, groups); got != MaxDecisions/2 {
		t.Fatalf("%d seats", got)
	}
}
