package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// errInherited is returned when the service manager passed sockets that nothing is to listen on.
var errInherited = errors.New("bad sockets from the service manager")

// wanted is a listener that the settings name.
type wanted struct {
	name    string // what FileDescriptorName= calls it
	address string
	local   bool // loopback or a Unix socket alone
}

// inherit gives the sockets that the service manager opened for this process (LISTEN_FDS), by the
// address that the settings have for each. One goes by its name where it has that of a listener, else
// by its address. Each has to be wanted: a port that is open with nobody behind it is a mistake.
func inherit(all ...wanted) (map[string]net.Listener, error) {
	all = slices.DeleteFunc(all, func(w wanted) bool { return w.address == "" })
	files := activation.Files(true)
	out := map[string]net.Listener{}
	var errs []error
	for _, f := range files {
		ln, err := net.FileListener(f) // a copy
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %s is no socket that listens: %w", errInherited, f.Name(), err))
			continue
		}
		_ = f.Close() // the copy is what counts
		w, err := whose(f.Name(), ln.Addr(), all)
		switch {
		case err != nil:
			err = errors.Join(err, ln.Close())
		case out[w.address] != nil:
			err = errors.Join(fmt.Errorf("%w: two for %s, which listens on %s", errInherited, w.name, w.address), ln.Close())
		default:
			out[w.address] = ln
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		for _, ln := range out {
			err = errors.Join(err, ln.Close())
		}
		return nil, err
	}
	return out, nil
}

// whose finds the listener that an inherited socket is.
func whose(name string, at net.Addr, all []wanted) (wanted, error) {
	i := slices.IndexFunc(all, func(w wanted) bool { return w.name == name })
	if i < 0 {
		i = slices.IndexFunc(all, func(w wanted) bool { return sameAddress(w.address, at) })
	}
	if i < 0 {
		var names []string
		for _, w := range all {
			names = append(names, w.name+" on "+w.address)
		}
		return wanted{}, fmt.Errorf("%w: %s on %s is none of %s", errInherited, name, at, strings.Join(names, ", "))
	}
	w := all[i]
	tcp, isTCP := at.(*net.TCPAddr)
	switch {
	case w.local && isTCP && !tcp.IP.IsLoopback():
		// What is served there asks nobody who they are.
		return w, fmt.Errorf("%w: %s on %s can be reached from elsewhere: want loopback or a Unix socket", errInherited, w.name, at)
	case !w.local && !isTCP:
		return w, fmt.Errorf("%w: %s on %s is no TCP socket", errInherited, w.name, at)
	}
	return w, nil
}

// sameAddress reports whether a socket listens where the settings say.
func sameAddress(address string, at net.Addr) bool {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return at.Network() == "unix" && strings.TrimPrefix(path, "//") == at.String()
	}
	tcp, ok := at.(*net.TCPAddr)
	host, port, err := net.SplitHostPort(address)
	if !ok || err != nil || port != strconv.Itoa(tcp.Port) {
		return false
	}
	ip := net.ParseIP(host)
	switch {
	case host == "":
		return tcp.IP.IsUnspecified()
	case host == "localhost":
		return tcp.IP.IsLoopback()
	case ip != nil && ip.IsUnspecified():
		return tcp.IP.IsUnspecified() // Linux takes [::] for both
	}
	return ip != nil && ip.Equal(tcp.IP)
}

// tellManager tells the service manager that started us, if one did, what the process is about to do.
func tellManager(ctx context.Context, log *slog.Logger, state string) {
	if state == daemon.SdNotifyReloading {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
			state += "\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10) // Type=notify-reload wants it
		}
	}
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WarnContext(ctx, "the service manager cannot be told", slog.String("state", state), slog.Any("error", err))
	}
}
