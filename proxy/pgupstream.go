package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// pgTarget is the database, with its files as they are now.
func (p *Proxy) pgTarget() (pgwire.Target, error) {
	cfg, err := p.cfg.pg.tlsConfig()
	return pgwire.Target{Dial: p.up.dial, TLS: cfg}, err
}

// pgLogin begins a session as the role and refuses roles that could become another. It asks the session itself, each
// time: a role that was made a member of another a moment ago is found out before its next session begins.
func (p *Proxy) pgLogin(ctx context.Context, t pgwire.Target, db, role string, start pgwire.Startup) (*pgwire.Server, roleFacts, error) {
	cred, err := p.cfg.pg.credentials(db, role)
	if err != nil {
		return nil, roleFacts{}, err
	}
	server, err := pgwire.Login(ctx, t, start, cred)
	if err != nil {
		return nil, roleFacts{}, err
	}
	facts, err := askRole(ctx, server)
	if err == nil {
		err = facts.check(db, role)
	}
	if err != nil {
		return nil, facts, errors.Join(err, server.Conn.Close())
	}
	return server, facts, nil
}

const (
	// leaveTime is how long a backend may take to end by itself before it is made to.
	leaveTime = 250 * time.Millisecond
	// reapTime is for how long it is tried to end a backend.
	reapTime = 10 * time.Second
)

// reap sees to it that the session's backend is gone, and what it was doing with it. A backend does not notice that its
// client has left before it has something to say, and a cancel request is an error that SQL can catch: with either alone,
// `DO $$ … LOOP … EXCEPTION WHEN query_canceled …` goes on for ever after the grant has ended. So one that does
// not end by itself is ended by another login of the same role, which PostgreSQL allows.
func (s *pgSession) reap() {
	if s.server == nil {
		return
	}
	defer func() { _ = s.server.Conn.Close() }() // it is over
	if s.serverGone {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.c.ctx), reapTime)
	defer cancel()
	cut := s.c.cutReason() != ""
	if cut {
		s.cancelUpstream(ctx)
	}
	if s.leave() {
		return
	}
	if !cut {
		s.cancelUpstream(ctx)
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.endBackend(ctx)
		if s.gone(leaveTime) {
			return
		}
		if ctx.Err() != nil {
			s.p.log.Error("a postgres session's backend could not be ended: what it does, it goes on doing",
				slog.String("database", s.db), slog.String("role", s.role), slog.String("pid", s.facts.pid),
				slog.String("grant", s.c.adm.grantID), slog.Any("error", err))
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// leave takes leave of the backend, and says whether it has ended.
func (s *pgSession) leave() bool {
	conn := s.server.Conn
	if err := conn.SetDeadline(time.Now().Add(leaveTime)); err != nil {
		return true
	}
	if s.upWhole {
		_, _ = conn.Write([]byte{'X', 0, 0, 0, 4}) // if it does not hear this, it hears the end
	}
	if hc, ok := conn.(halfCloser); ok {
		_ = hc.CloseWrite() // as above
	}
	return s.gone(leaveTime)
}

// gone says whether the backend ends within d.
func (s *pgSession) gone(d time.Duration) bool {
	if err := s.server.Conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return true
	}
	_, err := io.Copy(io.Discard, s.server.R)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// endBackend ends the session's backend by another login.
func (s *pgSession) endBackend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.p.cfg.limits.dialTO)
	defer cancel()
	cred, err := s.p.cfg.pg.credentials(s.db, s.role)
	if err != nil {
		return err
	}
	other, err := pgwire.Login(ctx, s.target, pgWish{db: s.db, role: s.role}.startup(), cred)
	if err != nil {
		return err
	}
	_, err = other.Query(ctx, s.facts.endQuery())
	return errors.Join(err, other.Conn.Close())
}
