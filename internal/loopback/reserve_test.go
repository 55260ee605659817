//go:build linux

package loopback_test

import (
	"net"
	"testing"

	"github.com/hallpass/hallpass/internal/loopback"
)

// TestReserve: who names the port listens on it as often as they like, and in
// between nobody gets it by chance.
func TestReserve(t *testing.T) {
	r, err := loopback.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l, err := net.Listen("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _, _ = s.Close(), c.Close(), l.Close()
		if c, err := net.Dial("tcp", r.Address()); err == nil {
			t.Fatalf("%s answers with nobody there: connected to itself from %s", r.Address(), c.LocalAddr())
		}
	}
	given := map[string]bool{}
	for range 2000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			break // all ports are given
		}
		defer func() { _ = l.Close() }()
		given[l.Addr().String()] = true
	}
	if given[r.Address()] {
		t.Errorf("%s was given to another", r.Address())
	}
	if err := r.Release(); err != nil {
		t.Error(err)
	}
}
