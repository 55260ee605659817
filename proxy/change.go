package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"time"
)

// ErrRestart is returned when a setting changed that a running proxy cannot change.
var ErrRestart = errors.New("cannot change while the proxy runs: restart it")

// Reload looks at certificates, bundles and the configuration now and opens the
// access log anew, as SIGHUP asks. What is broken stays as it was and is in the error.
func (f *Fleet) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := []error{f.access.reopen(true)}
	for _, name := range slices.Sorted(maps.Keys(f.members)) {
		errs = append(errs, f.members[name].px.reload())
	}
	return errors.Join(append(errs, f.reconfigure())...)
}

// watch looks at the access log and the configuration file every second.
func (f *Fleet) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := f.access.reopen(false); err != nil {
				f.log.Error("access log cannot be opened", slog.Any("error", err))
			}
			f.look() //nolint:contextcheck // services and connections have their own
		}
	}
}

// look takes a changed configuration file over. An editor's half-written file is
// one that is refused, and looked at again when it is whole.
func (f *Fleet) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := f.config.Settings.file
	if path == "" || f.load == nil {
		return
	}
	now, err := os.ReadFile(path)
	if err != nil || bytes.Equal(now, f.file) {
		return
	}
	if f.reconfigure() == nil { // else it has logged it once, and what it was refused for may pass
		f.file = now
	}
}

// reconfigure reads the settings and takes them over, all of them or none. The
// caller holds mu.
func (f *Fleet) reconfigure() error {
	if f.load == nil || f.ctx == nil || f.ended {
		return nil
	}
	s, err := f.load()
	if err == nil {
		err = f.adopt(s)
	}
	if err == nil {
		f.refused = ""
		return nil
	}
	if f.refused != err.Error() {
		f.log.Error("the configuration is refused, and the one in force stays", slog.Any("error", err))
	}
	f.refused = err.Error()
	return err
}

// change is what a new configuration makes of the old one.
type change struct {
	kept    map[*member]*Proxy // and what they are to be
	added   []*member
	removed []string
}

// adopt takes new settings over. Everything that can fail comes before the first
// thing that shows. The caller holds mu.
func (f *Fleet) adopt(s Settings) error {
	c := f.config
	c.Settings = s
	cfgs, err := newConfigs(c)
	if err != nil {
		return err
	}
	set := s.split()
	if reflect.DeepEqual(plain(set), plain(f.set)) {
		f.set = set
		return nil
	}
	if err := f.withinSandbox(cfgs); err != nil {
		return err
	}
	next, opened, err := f.prepare(cfgs)
	if err != nil {
		for _, m := range next.added {
			m.px.unobserve()
		}
		for _, address := range opened {
			_ = f.ports[address].ln.Close() // it was never served
			delete(f.ports, address)
		}
		return err
	}
	f.set = set
	f.apply(next)
	return nil
}

// plain leaves out where settings come from.
func plain(set []Settings) []Settings {
	out := slices.Clone(set)
	for i := range out {
		out[i].file, out[i].lines, out[i].in = "", nil, ""
	}
	return out
}

// prepare makes everything that the new configuration needs, beside the old.
func (f *Fleet) prepare(cfgs []*config) (next change, opened []string, err error) {
	next.kept = map[*member]*Proxy{}
	stay := map[string]bool{}
	var errs []error
	for _, cfg := range cfgs {
		stay[cfg.service] = true
		if cfg.listen == "" {
			errs = append(errs, fmt.Errorf("%w: listen: is missing", ErrSettings))
			continue
		}
		if err := f.fixed(cfg); err != nil {
			errs = append(errs, err)
			continue
		}
		m := f.members[cfg.service]
		if m == nil {
			if f.leaving[cfg.service] != nil {
				errs = append(errs, fmt.Errorf("%w: service %s was taken out and still drains: try again when it has", ErrSettings, cfg.service))
				continue
			}
			px, err := newProxy(cfg, f.access)
			if err != nil {
				errs = append(errs, fmt.Errorf("service %s: %w", cfg.service, err))
				continue
			}
			next.added = append(next.added, &member{px: px, listen: cfg.listen})
			continue
		}
		px, err := m.px.newest.Load().under(cfg)
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", cfg.service, err))
			continue
		}
		next.kept[m] = px
	}
	for _, cfg := range cfgs {
		if len(errs) > 0 {
			break
		}
		if f.ports[cfg.listen] == nil {
			if _, err := f.portOf(cfg.listen); err != nil {
				errs = append(errs, fmt.Errorf("listen: %w", err))
				break
			}
			opened = append(opened, cfg.listen)
		}
	}
	for name := range f.members {
		if !stay[name] {
			next.removed = append(next.removed, name)
		}
	}
	return next, opened, errors.Join(errs...)
}

// fixed refuses a change of what all services stand on.
func (f *Fleet) fixed(cfg *config) error {
	was := &f.config.Settings
	for _, m := range f.members {
		old := m.px.cfg
		for _, c := range []struct {
			key  string
			same bool
		}{
			{"access_log", old.logPath == cfg.logPath && old.logDeny == cfg.logDeny && old.rotation == cfg.rotation},
			{"admin", was.Admin == cfg.admin},
			{"sandbox", old.sandbox == cfg.sandbox},
		} {
			if !c.same {
				return fmt.Errorf("%w: %s: %w", ErrSettings, c.key, ErrRestart)
			}
		}
	}
	return nil
}

// under is the same service under another configuration: its connections, its
// feed and its counters stay.
func (p *Proxy) under(cfg *config) (*Proxy, error) {
	old := p.cfg
	cfg.among = old.among // what its counters are labelled with stays
	for _, c := range []struct {
		key  string
		same bool
	}{
		{"trust_domain", old.identityTD == cfg.identityTD},
		{"grant_trust_domain", old.grantTD == cfg.grantTD},
		{"protocol", old.tcp == cfg.tcp && (old.pg == nil) == (cfg.pg == nil)},
		{"revocation", reflect.DeepEqual(old.servers, cfg.servers) && old.stateFile == cfg.stateFile && old.staleness == cfg.staleness && old.skew == cfg.skew},
		{"limits", old.limits == cfg.limits},
		{"roots_file", old.files.roots == cfg.files.roots},
	} {
		if !c.same {
			return nil, fmt.Errorf("%w: %s: %w", ErrSettings, c.key, ErrRestart)
		}
	}
	if err := cfg.pg.readable(); err != nil {
		return nil, err
	}
	if old.files != cfg.files {
		// Looked at before anything changes: who names a file that is broken keeps what was there.
		if _, err := newKeeper(cfg); err != nil {
			return nil, err
		}
	}
	next := &Proxy{core: p.core, cfg: cfg, up: p.up}
	if old.upstream != cfg.upstream {
		next.up = newUpstream(cfg)
	}
	return next, nil
}

// apply makes the change show. Nothing in it fails.
func (f *Fleet) apply(next change) {
	for m, px := range next.kept {
		was := m.px.newest.Load()
		m.listen = px.cfg.listen
		px.inForce(was)
	}
	for _, m := range next.added {
		run, err := m.px.start(f.ctx, f.ports[m.listen].ln.Addr())
		if err != nil { // it was never served
			f.log.Error("a service was not started", slog.String("service", m.px.cfg.service), slog.Any("error", err))
			continue
		}
		m.run = run
		f.members[m.px.cfg.service] = m
	}
	gone := make([]*member, 0, len(next.removed))
	for _, name := range next.removed {
		gone = append(gone, f.members[name])
		delete(f.members, name)
	}
	f.route()
	used := map[string]bool{}
	for _, m := range f.members {
		used[m.listen] = true
	}
	for address, p := range f.ports {
		switch {
		case !used[address]:
			_ = p.ln.Close() // its connections live on
			delete(f.ports, address)
		case !p.serving:
			f.serve(p)
		}
	}
	for _, m := range gone {
		f.leave(m)
	}
	f.log.Info("a new configuration is in force", slog.Any("services", slices.Sorted(maps.Keys(f.members))),
		slog.Int("added", len(next.added)), slog.Any("removed", next.removed))
}

// leave drains a service that was taken out, behind the others' back.
func (f *Fleet) leave(m *member) {
	name, done := m.px.cfg.service, make(chan struct{})
	f.leaving[name] = done
	f.wg.Go(func() {
		m.run.end()
		f.access.leave(m.px.cfg.self.String())
		close(done)
		f.log.Info("a service that was taken out has drained", slog.String("service", name))
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.leaving, name)
	})
}

// inForce puts a configuration in the place of the one before. From here on every
// request is judged by it, on connections that are older than it as well; who
// would not be admitted any more is cut.
func (p *Proxy) inForce(was *Proxy) {
	p.keeper.use(p.cfg)
	p.newest.Store(p)
	p.sayObserving()
	if p.up != was.up {
		was.up.close()
	}
	if err := p.reload(); err != nil {
		p.log.Error("certificates were loaded a moment ago, and cannot be now", slog.Any("error", err))
	}
	m, now := p.keeper.cur.Load(), wall(p.cfg.now)
	p.live.cutWhere(reasonReconfigured, func(c *conn) bool {
		_, err := examine(c.proven().chain, m, p.cfg, now)
		return err != nil
	})
}

// reasonReconfigured is of a connection that a changed configuration ended.
const reasonReconfigured = "reconfigured"

// use has the keeper look at other files from now on.
func (k *keeper) use(cfg *config) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cfg.files == cfg.files {
		return
	}
	k.cfg = cfg
}
