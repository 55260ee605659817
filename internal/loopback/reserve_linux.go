package loopback

import (
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

func reserve(port int) (r *Reservation, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd) // the other error says more
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	got := name.(*unix.SockaddrInet4).Port //nolint:forcetypeassert // an AF_INET socket has no other
	return &Reservation{
		address: net.JoinHostPort("127.0.0.1", strconv.Itoa(got)),
		release: func() error { return unix.Close(fd) },
	}, nil
}
