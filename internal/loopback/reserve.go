package loopback

import (
	"fmt"
	"net"
	"strconv"
)

// Reservation is a port of 127.0.0.1 that is given to nobody who does not name
// it, until it is released.
type Reservation struct {
	address string
	release func() error
}

// Address is the host and port, as net.Listen takes it.
func (r *Reservation) Address() string { return r.address }

// Release gives the port back. Who listens on it goes on.
func (r *Reservation) Release() error { return r.release() }

// Reserve finds a port that nobody has.
func Reserve() (*Reservation, error) { return reserve(0) }

// Again reserves an address that an earlier process had reserved, or fails when
// somebody has it now.
func Again(address string) (*Reservation, error) {
	host, text, err := net.SplitHostPort(address)
	port, bad := strconv.ParseUint(text, 10, 16)
	if err != nil || bad != nil || host != "127.0.0.1" || port == 0 {
		return nil, fmt.Errorf("%q is no address that was reserved", address)
	}
	return reserve(int(port))
}
