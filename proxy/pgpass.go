package proxy

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// passwordEntry is one line of a password file; "*" matches anything.
type passwordEntry struct{ host, port, db, role, password string }

const maxPasswordFile = 1 << 20

// readPasswords reads a file in the form of libpq's .pgpass: HOST:PORT:DATABASE:ROLE:PASSWORD, a backslash before ":"
// and "\", lines that begin with "#" left out, the first line that matches counts. A file that others than its owner can read
// is refused, and one with a line that is none of that: libpq passes over both.
func readPasswords(path string) ([]passwordEntry, error) {
	fail := func(format string, args ...any) ([]passwordEntry, error) {
		return nil, fmt.Errorf("%w: %s%s", ErrMaterial, path, fmt.Sprintf(format, args...))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMaterial, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMaterial, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fail(": has mode %04o; passwords are for their owner alone: chmod 600", info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPasswordFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMaterial, err)
	}
	if len(data) > maxPasswordFile {
		return fail(": has over %d bytes", maxPasswordFile)
	}
	var entries []passwordEntry
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		fields, ok := splitPassword(line)
		if !ok {
			return fail(":%d: is not HOST:PORT:DATABASE:ROLE:PASSWORD", i+1)
		}
		if !pgwire.ValidPassword(fields[4]) {
			return fail(":%d: the password is empty, too long, or has other than printable ASCII characters", i+1)
		}
		entries = append(entries, passwordEntry{fields[0], fields[1], fields[2], fields[3], fields[4]})
	}
	if len(entries) == 0 {
		return fail(": holds no password")
	}
	return entries, nil
}

// splitPassword splits a line at its colons and takes its backslashes away.
func splitPassword(line string) (fields [5]string, ok bool) {
	n := 0
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case c == ':' && n == 4, c == '\\': // a fifth colon could be the password's, or a mistake
			return fields, false
		case c == ':':
			fields[n] = b.String()
			b.Reset()
			n++
		default:
			b.WriteByte(c)
		}
	}
	fields[n] = b.String()
	for _, f := range fields {
		if f == "" {
			return fields, false
		}
	}
	return fields, n == 4
}

func (e passwordEntry) matches(pg *pgConfig, db, role string) bool {
	for _, f := range [][2]string{{e.host, pg.host}, {e.port, pg.port}, {e.db, db}, {e.role, role}} {
		if f[0] != "*" && f[0] != f[1] {
			return false
		}
	}
	return true
}
