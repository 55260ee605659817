package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	xrate "golang.org/x/time/rate"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy/pgwire"
)

// pgSession is one Postgres session: a client that has proven a grant, and the proxy's own login as the role of it.
//
//	client ─► begin ─► authorize ─► open (login, role checked) ─► relay ─► reap: the backend is gone, whatever it was doing
type pgSession struct {
	p       *Proxy
	c       *conn
	client  net.Conn // TLS, or a stream within it
	tunnel  bool
	rec     record
	in, out atomic.Int64

	db, role string
	target   pgwire.Target
	server   *pgwire.Server
	facts    roleFacts
	cancels  *xrate.Limiter
	key      pgwire.Cancel

	cutting atomic.Bool              // nothing more goes to either side
	first   atomic.Pointer[pgEnding] // what ended first
	// What follows is the half's that reads the client, and then, when both have ended, the session's.
	upWhole    bool // what the database has been sent ends where a message ends
	statements int64
	serverGone bool // the database ended the session; the half's that reads it

	relayed chan struct{} // closed when both halves have ended

	turn  chan struct{} // of capacity one: in it while somebody writes to the client; owns what follows
	over  bool          // nothing more may be written to the client
	whole bool          // what it has been sent ends where a message ends
}

// servePostgres carries one connection of a postgres service, or one stream of a connection that carries several: client
// is where its bytes are, c who has proven what, and until when. In a tunnel the program at the other end believes that it
// speaks to a server without TLS.
func (p *Proxy) servePostgres(c *conn, client net.Conn, tunnel bool) {
	defer func() { _ = client.Close() }() // says close_notify where it still can
	s := &pgSession{
		p: p, c: c, client: client, tunnel: tunnel, cancels: newCancels(), turn: make(chan struct{}, 1), relayed: make(chan struct{}), whole: true, upWhole: true,
		rec: record{time: c.started, kind: kindConnection, event: "end", conn: c.id, service: p.cfg.service, protocol: "postgres", peer: c.peer},
	}
	s.rec.of(c.proven())
	first, err := s.begin()
	p = p.newest.Load() // a client may take its time until it says what it wants
	s.p = p
	if err == nil && first.Kind == pgwire.KindCancel {
		p.pgCancel(c.ctx, first.Cancel, c.proven(), c.peer)
		return
	}
	ctx, spans := p.tele.beginPostgres(c.ctx, c)
	s.rec.trace = spans.traceID
	defer func() {
		var reaping sync.WaitGroup
		reaping.Go(s.reap) // a disk that hangs must not keep a backend at work
		s.takeLeave()
		s.rec.bytesIn, s.rec.bytesOut, s.rec.requests = s.in.Load(), s.out.Load(), s.statements
		s.rec.duration = since(p.cfg.now, c.started)
		p.tele.request(context.WithoutCancel(ctx), &s.rec)
		spans.end(&s.rec)
		_ = p.access.write(&s.rec) // a failure denies the next connection
		reaping.Wait()
	}()
	if err != nil {
		s.rec.decision, s.rec.reason = decisionRefuse, s.orCut(reasonOf(err))
		if errors.Is(err, pgwire.ErrFirst) {
			s.rec.reason = reasonProtocol
			s.tell(pgwire.Fatal{Code: pgwire.CodeProtocolViolation, Message: "hallpass: " + err.Error()})
		}
		return
	}
	wish, ok := s.authorize(first.Startup)
	if !ok {
		return
	}
	ctx = p.tele.upstream(ctx, &spans, "postgres "+s.db, []attribute.KeyValue{
		attribute.String("hallpass.grant.id", c.adm.grantID), attribute.String("db.system.name", "postgresql"), attribute.String("db.namespace", s.db),
	})
	if !s.open(ctx, wish) {
		return
	}
	defer p.pg.keys.Revoke(s.key)
	defer c.beforeCut(s.part)()
	if c.cutReason() != "" { // before anybody could be told
		s.rec.reason = c.cutReason()
		return
	}
	if s.write(pgwire.Welcome{Client: first.Startup, Status: s.server.Status, Key: s.key}.Bytes(), true) != nil {
		s.rec.reason = s.orCut(reasonClientGone)
		return
	}
	s.rec.reason = s.relay()
}

// takeLeave ends the client's connection, so that nobody waits for the database to end its part. One that is cut has its
// last word first.
func (s *pgSession) takeLeave() {
	if s.c.cutReason() != "" {
		<-s.c.ctx.Done()
	}
	_ = s.client.Close() // says close_notify where it still can
}

// begin reads what the client begins with, within the time for a head.
func (s *pgSession) begin() (pgwire.First, error) {
	if err := s.client.SetDeadline(time.Now().Add(s.p.cfg.limits.headerTime)); err != nil {
		return pgwire.First{}, err
	}
	for range 3 {
		f, err := pgwire.ReadFirst(s.client)
		if err != nil {
			return f, err
		}
		if f.Kind == pgwire.KindStartup || f.Kind == pgwire.KindCancel {
			return f, s.client.SetDeadline(time.Time{})
		}
		if !s.tunnel {
			break // it has what it asks for
		}
		if _, err := s.client.Write([]byte{'N'}); err != nil {
			return f, err
		}
	}
	return pgwire.First{}, fmt.Errorf("%w: encryption asked for within TLS", pgwire.ErrFirst)
}

// authorize decides whether the client may have what it asks for, and tells it if not.
func (s *pgSession) authorize(start pgwire.Startup) (pgWish, bool) {
	wish, refused := readWish(start)
	s.db, s.role = wish.db, wish.role
	s.rec.database, s.rec.role = s.db, s.role
	if why := s.p.mayPostgres(s.c, s.db, s.role, &s.rec); why != "" {
		s.rec.decision, s.rec.reason = decisionDeny, why
		s.tell(s.denied(why))
		return wish, false
	}
	if refused != nil {
		s.rec.permission, s.rec.wouldDeny = "", ""
		s.rec.decision, s.rec.reason = decisionRefuse, reasonNotAllowed
		s.tell(*refused)
		return wish, false
	}
	return wish, true
}

// mayPostgres says why a connection may not open a database as a role, or "".
func (p *Proxy) mayPostgres(c *conn, db, role string, rec *record) string {
	switch {
	case !wall(p.cfg.now).Before(c.proven().notAfter):
		return reasonExpired
	case p.stale(c.proven()):
		return reasonStale
	case p.denied(c) != "":
		return p.denied(c)
	}
	need, err := grant.PostgresPermission(db, role)
	if err != nil {
		return reasonOutsideScope // names that no grant can have
	}
	out := p.permits(c, func(m *grant.Matcher) (grant.Permission, bool) { return need, m.Postgres(db, role) })
	if out.reason != "" {
		return out.reason
	}
	rec.rule, rec.wouldDeny = out.rule, out.wouldDeny
	p.tele.observed(c.ctx, out.wouldDeny)
	if out.wouldDeny == "" {
		rec.permission = c.permissionText(need)
	}
	return ""
}

// denied says in the client's words why it may not, and how to ask for what it wanted.
func (s *pgSession) denied(why string) pgwire.Fatal {
	f := pgwire.Fatal{Code: pgwire.CodeInvalidAuthorization}
	switch why {
	case reasonNoGrant, reasonOutsideScope:
		f.Message = fmt.Sprintf("hallpass: no grant opens database %q as role %q", s.db, s.role)
		if why == reasonOutsideScope {
			f.Detail = "this one is for: " + strings.Join(s.c.texts, ", ")
		}
		if need, err := grant.PostgresPermission(s.db, s.role); err == nil {
			f.Hint = requestCommand(s.p.cfg.service, need)
		}
	case reasonExpired:
		f.Message = "hallpass: the grant certificate has expired"
	case reasonStale:
		f.Code, f.Message = pgwire.CodeCannotConnectNow, "hallpass: news of revocations is too old to admit anybody"
	case reasonRate:
		f.Code, f.Message = pgwire.CodeTooManyConnections, "hallpass: too many sessions; wait, and connect again"
	case reasonHours:
		f.Message = "hallpass: this service may not be used at this time"
	case reasonSource:
		f.Message = "hallpass: this service may not be used from there"
	default:
		f.Message = "hallpass: the grant was revoked"
	}
	return f
}

// open logs in as the role, and looks whether it can be only that.
func (s *pgSession) open(ctx context.Context, wish pgWish) bool {
	s.rec.decision = decisionAllow
	// The record of a session's beginning comes before the database hears of it: the one of its end may be hours away.
	begun := s.rec
	begun.event = "open"
	if err := s.p.access.write(&begun); err != nil {
		s.rec.decision, s.rec.permission, s.rec.wouldDeny, s.rec.reason = decisionDeny, "", "", reasonLogUnavailable
		s.tell(unrecorded())
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.p.cfg.limits.dialTO)
	defer cancel()
	var err error
	if s.target, err = s.p.pgTarget(); err == nil {
		s.server, s.facts, err = s.p.pgLogin(ctx, s.target, s.db, s.role, wish.startup())
	}
	if err == nil {
		s.key, err = s.p.pg.keys.Issue(wish.minor, s)
	}
	if err != nil {
		s.loginFailed(err)
		return false
	}
	return true
}

// loginFailed tells the client as much as it has to know, and operators the rest.
func (s *pgSession) loginFailed(err error) {
	f := pgwire.Fatal{Code: pgwire.CodeCannotConnect, Message: "hallpass: the database cannot be reached"}
	s.rec.reason = reasonUpstream
	var said *pgwire.ServerError
	switch {
	case errors.Is(err, errRole):
		s.rec.decision, s.rec.permission, s.rec.wouldDeny, s.rec.reason = decisionDeny, "", "", reasonRole
		f = pgwire.Fatal{
			Code: pgwire.CodeInvalidAuthorization, Message: fmt.Sprintf("hallpass: role %q cannot be used, as it could become another", s.role),
			Hint: "the service's owner sees why by: hallpass proxy doctor",
		}
	case errors.As(err, &said):
		s.rec.reason = reasonLogin
		f.Code, f.Message = said.Code, fmt.Sprintf("hallpass: the database refuses a session in %q as %q", s.db, s.role)
	case errors.Is(err, pgwire.ErrLogin), errors.Is(err, ErrMaterial):
		s.rec.reason = reasonLogin
		f.Message = fmt.Sprintf("hallpass: could not log in to the database as %q", s.role)
	}
	s.rec.reason = s.orCut(s.rec.reason)
	s.p.log.Warn("no postgres session", slog.String("upstream", s.p.cfg.upstream.address),
		slog.String("database", s.db), slog.String("role", s.role), slog.Any("error", err))
	s.tell(f)
}

func unrecorded() pgwire.Fatal {
	return pgwire.Fatal{Code: pgwire.CodeSystemError, Message: "hallpass: the access log cannot be written"}
}

// tell ends a session that has not begun, in words.
func (s *pgSession) tell(f pgwire.Fatal) {
	if err := s.client.SetWriteDeadline(time.Now().Add(time.Second)); err == nil {
		_ = s.write(f.Bytes(), true) // who is gone needs no answer
	}
}

// orCut is why, unless the connection was cut, which then is the reason.
func (s *pgSession) orCut(why string) string {
	if cut := s.c.cutReason(); cut != "" {
		return cut
	}
	return why
}

// beginPostgres starts the span of a session.
func (t *telemetry) beginPostgres(ctx context.Context, c *conn) (context.Context, spans) {
	if t.tracer == nil {
		return ctx, spans{}
	}
	ctx, span := t.tracer.Start(ctx, "postgres", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("db.system.name", "postgresql")), trace.WithAttributes(c.spanAttributes()...))
	return ctx, spans{server: span, traceID: traceIDOf(span)}
}
