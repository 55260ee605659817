package proxy

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

const (
	mayRead  = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir)
	mayWrite = mayRead | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSRemoveFile | ll.AccessFSMakeSock

	// landlockNet is the first version that knows TCP.
	landlockNet = 4
)

// confine restricts every thread of the process, those to come included.
//
// Multipath TCP sockets are not restricted by Landlock: our listeners are none
// (see listenTCP), and one that a thief of this process makes is not held.
func confine(r reach, rule sandboxRule) (string, error) {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		version = 0
	}
	if version < landlockNet && rule == sandboxRequired {
		return "", fmt.Errorf("the kernel has Landlock version %d, and version %d is needed (0: none; see lsm= of its command line)", version, landlockNet)
	}
	if err := dropCapabilities(r); err != nil {
		return "", err
	}
	if version < 1 {
		return "capabilities only: this kernel has no Landlock", nil
	}
	rules := []landlock.Rule{
		landlock.PathAccess(mayRead, r.read...),
		landlock.PathAccess(mayWrite, r.write...),
		// Names, time zones, and what the runtime asks of the machine.
		landlock.PathAccess(mayRead, "/etc", "/run/systemd/resolve", "/usr/share/zoneinfo", "/usr/lib", "/lib", "/lib64", "/proc/self", "/proc/sys", "/sys/fs/cgroup").IgnoreIfMissing(),
		landlock.PathAccess(ll.AccessFSReadFile|ll.AccessFSWriteFile, "/dev/null").IgnoreIfMissing(),
		landlock.ConnectTCP(53), // a resolver whose answer is too long for UDP
	}
	for _, n := range r.bind {
		rules = append(rules, landlock.BindTCP(n))
	}
	for _, n := range r.connect {
		rules = append(rules, landlock.ConnectTCP(n))
	}
	// Version 5 is the newest whose rights the rules above were written for; older
	// kernels get what they know of it.
	if err := landlock.V5.BestEffort().Restrict(rules...); err != nil {
		return "", err
	}
	if version < landlockNet {
		return fmt.Sprintf("Landlock version %d: folders, and not ports", version), nil
	}
	return fmt.Sprintf("Landlock version %d: folders and ports", version), nil
}

// lowPorts are those that take a privilege to bind.
const lowPorts = 1024

// dropCapabilities leaves the process none of root's rights but that of binding a
// low port, where it has one to bind; and no program that it starts gets any.
func dropCapabilities(r reach) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	var keep uint32
	for _, n := range r.bind {
		if n > 0 && n < lowPorts {
			keep = 1 << unix.CAP_NET_BIND_SERVICE
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	keep &= have[0].Permitted // nobody gains by it
	next := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	//nolint:gosec // what capset takes; both outlive the call
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&next[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capabilities: %w", errors.Join(errno))
	}
	return nil
}
