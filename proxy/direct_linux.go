//go:build linux && !race

package proxy

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// direct is a TCP socket that is read and written without the scheduler being told
// of each system call. It need not be: the socket never blocks. Told of it, the
// runtime gives the processor away to another thread wherever a call takes longer
// than its look-out sleeps, 20 µs, as a write over loopback does that has the
// receiver's work done in it. That was a twelfth of a request of HTTP/1.
//
// Waiting, deadlines and closing are net's own.
type direct struct {
	*net.TCPConn
	in, out transfer
}

// transfer is one direction of a socket.
type transfer struct {
	raw  syscall.RawConn
	call uintptr // the system call's number
	try  func(fd uintptr) bool

	mu    sync.Mutex // owns what follows
	p     []byte
	n     int
	errno syscall.Errno
}

// directly is the same connection, read and written so if it is a TCP socket.
func directly(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c // it is closed, and says so when it is used
	}
	d := &direct{TCPConn: t}
	d.in.raw, d.in.call = raw, syscall.SYS_READ
	d.out.raw, d.out.call = raw, syscall.SYS_WRITE
	d.in.try, d.out.try = d.in.step, d.out.step
	return d
}

// step goes as far as it can without waiting, and says whether it is done.
func (t *transfer) step(fd uintptr) bool {
	for {
		p := t.p[t.n:]
		n, _, errno := syscall.RawSyscall(t.call, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))) //nolint:gosec // p is not empty, and lives
		switch errno {
		case 0:
			if t.n += int(n); t.call == syscall.SYS_READ || t.n == len(t.p) {
				return true
			}
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
}

// run moves p with one of raw's two ways of waiting.
func (t *transfer) run(wait func(func(uintptr) bool) error, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.n, t.errno = p, 0, 0
	err := wait(t.try)
	t.p = nil
	if err == nil && t.errno != 0 {
		err = t.errno
	}
	return t.n, err
}

func (d *direct) Read(p []byte) (int, error) {
	n, err := d.in.run(d.in.raw.Read, p)
	switch {
	case err != nil:
		return n, d.failed("read", err)
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	default:
		return n, nil
	}
}

func (d *direct) Write(p []byte) (int, error) {
	n, err := d.out.run(d.out.raw.Write, p)
	if err != nil {
		return n, d.failed("write", err)
	}
	return n, nil
}

// failed is the error as net gives it.
func (d *direct) failed(op string, err error) error {
	errno, ok := err.(syscall.Errno) //nolint:errorlint // it is not wrapped: run has it from the kernel
	if !ok {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}
