package proxy

import "testing"

// TestCalm: memory is given back once after each burst, when it is over.
func TestCalm(t *testing.T) {
	var c calm
	for i, step := range []struct {
		conns uint64
		times int // how often it is due within the looks
	}{{0, 0}, {1, 0}, {5000, 1}, {5000, 0}, {5001, 1}} {
		due := 0
		looks := 3 * calmAfter
		if step.conns == 1 {
			looks = calmAfter - 1 // not yet
		}
		for range looks {
			if c.look(step.conns) {
				due++
			}
		}
		if due != step.times {
			t.Errorf("step %d: due %d times, want %d", i, due, step.times)
		}
	}
}
