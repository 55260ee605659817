package main

import "testing"

// TestGCFactor: there is room for as much garbage while little lives, and no more
// than the usual once much does.
func TestGCFactor(t *testing.T) {
	for live, want := range map[uint64]int{0: 3200, 1 << 20: 3200, 4 << 20: 800, 16 << 20: 200, 32 << 20: 100, 1 << 30: 100} {
		if got := gcFactor(live); got != want {
			t.Errorf("%d bytes: %d, want %d", live, got, want)
		}
	}
}
