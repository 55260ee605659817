//go:build !linux

package loopback

import (
	"fmt"
	"net"
	"strconv"
)

// reserve finds a port that was free a moment ago: other kernels let nobody
// listen on a port that another socket is bound to.
func reserve(port int) (*Reservation, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))) //nolint:noctx // closed at once
	if err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	return &Reservation{address: l.Addr().String(), release: func() error { return nil }}, l.Close()
}
