package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrSandbox is returned when the process cannot be confined as the settings say.
var ErrSandbox = errors.New("the sandbox cannot be set up")

// sandboxRule says what becomes of a proxy that cannot be confined.
type sandboxRule uint8

const (
	sandboxOff        sandboxRule = iota
	sandboxBestEffort             // as far as the kernel knows how; what is missing is logged
	sandboxRequired               // it does not start
)

func (c *config) readSandbox(s *Settings) error {
	switch s.Sandbox {
	case "off":
	case "", "best_effort":
		c.sandbox = sandboxBestEffort
	case "required":
		c.sandbox = sandboxRequired
	default:
		return s.mistake("sandbox", "%q is none of required, best_effort and off", s.Sandbox)
	}
	return nil
}

// reach is what a configuration needs of the machine: folders, since files are
// replaced by others of their name, and TCP ports.
type reach struct {
	read, write   []string
	bind, connect []uint16
}

// reachOf is what these services need, and the file that they are configured by.
func reachOf(cfgs []*config, file string) (reach, error) {
	var r reach
	var errs []error
	port := func(to *[]uint16, address string) {
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, err)
			return
		}
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: a sandbox takes ports as numbers", address))
			return
		}
		*to = append(*to, uint16(n))
	}
	folder := func(to *[]string, path string) {
		if path == "" || path == "-" {
			return
		}
		*to = append(*to, filepath.Dir(path))
		// What a link leads to is elsewhere, and may be gone by the time it is replaced.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			*to = append(*to, filepath.Dir(real))
		}
	}
	folder(&r.read, file)
	for _, c := range cfgs {
		for _, path := range []string{c.files.certificate, c.files.key, c.files.identity, c.files.grants} {
			folder(&r.read, path)
		}
		if pg := c.pg; pg != nil {
			for _, path := range []string{pg.passwordFile, pg.tlsRoots, pg.cert, pg.key} {
				folder(&r.read, path)
			}
		}
		for _, path := range []string{c.files.roots, c.stateFile, c.logPath} {
			folder(&r.write, path)
		}
		if c.listen != "" {
			port(&r.bind, c.listen)
		}
		if path, ok := strings.CutPrefix(c.admin, "unix:"); ok {
			folder(&r.write, strings.TrimPrefix(path, "//"))
		} else if c.admin != "" {
			port(&r.bind, c.admin)
		}
		if c.upstream.network == "tcp" {
			port(&r.connect, c.upstream.address)
		}
		for _, u := range c.servers {
			if u.Port() == "" {
				r.connect = append(r.connect, 443)
				continue
			}
			port(&r.connect, u.Host)
		}
	}
	r.tidy()
	return r, errors.Join(errs...)
}

func (r *reach) tidy() {
	slices.Sort(r.read)
	slices.Sort(r.write)
	slices.Sort(r.bind)
	slices.Sort(r.connect)
	r.read, r.write, r.bind, r.connect = slices.Compact(r.read), slices.Compact(r.write), slices.Compact(r.bind), slices.Compact(r.connect)
}

// lacks says what of next lies outside of r.
func (r *reach) lacks(next reach) []string {
	var out []string
	for _, f := range []struct {
		what    string
		of, has []string
	}{{"folder", next.read, slices.Concat(r.read, r.write)}, {"folder to write in", next.write, r.write}} {
		for _, path := range f.of {
			if !slices.ContainsFunc(f.has, func(has string) bool { return lies(path, has) }) {
				out = append(out, f.what+" "+path)
			}
		}
	}
	for _, f := range []struct {
		what    string
		of, has []uint16
	}{{"listening on port", next.bind, r.bind}, {"connecting to port", next.connect, r.connect}} {
		for _, n := range f.of {
			if !slices.Contains(f.has, n) {
				out = append(out, f.what+" "+strconv.Itoa(int(n)))
			}
		}
	}
	return out
}

// lies says whether a folder is another, or below it.
func lies(path, folder string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// Sandbox confines this process to what the configuration names, as its setting
// says: the folders of its files, the ports it listens on and connects to, and no
// privileges but for binding a low port. There is no way back, for the process as
// a whole, so call it once, before Run. More are ports that something beside the
// proxy connects to, as telemetry does.
func (f *Fleet) Sandbox(more ...uint16) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var cfgs []*config
	for _, m := range f.members {
		cfgs = append(cfgs, m.px.cfg)
	}
	if len(cfgs) == 0 || cfgs[0].sandbox == sandboxOff {
		return nil
	}
	r, err := reachOf(cfgs, f.config.Settings.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSandbox, err)
	}
	r.connect = append(r.connect, more...)
	r.tidy()
	said, err := confine(r, cfgs[0].sandbox)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSandbox, err)
	}
	f.confined = &r
	f.log.Info("sandbox", slog.String("is", said), slog.Any("reads", r.read), slog.Any("writes", r.write),
		slog.Any("binds", r.bind), slog.Any("connects", r.connect))
	return nil
}

// withinSandbox refuses a configuration that needs more than was allowed at the
// start. It would fail later, in the middle, with a mere "permission denied".
func (f *Fleet) withinSandbox(cfgs []*config) error {
	if f.confined == nil {
		return nil
	}
	next, err := reachOf(cfgs, f.config.Settings.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSettings, err)
	}
	if out := f.confined.lacks(next); len(out) > 0 {
		return fmt.Errorf("%w: outside of what the sandbox allowed at the start: %s; %w", ErrSettings, strings.Join(out, ", "), ErrRestart)
	}
	return nil
}
