package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// fakePG is as much of PostgreSQL as the proxy speaks to, on a socket: sessions that answer, sleep until they are
// cancelled, or are stubborn and end only when they are made to.
type fakePG struct {
	t    testing.TB
	path string
	wg   sync.WaitGroup

	mu        sync.Mutex // owns what follows
	attrs     string     // of every role
	members   string
	acting    string // the role that sessions act as; "" is their own
	status    []pgwire.Parameter
	sessions  map[uint32]*fakeSession
	started   []pgwire.Startup
	cancelled []uint32 // by right keys
	ended     []uint32 // by other sessions
	queries   []string
	conns     map[net.Conn]struct{}
}

type fakeSession struct {
	pid    uint32
	secret []byte
	cancel chan struct{} // gets one for each
	end    chan struct{} // closed
	once   sync.Once
}

func startFakePG(t testing.TB) *fakePG {
	t.Helper()
	f := &fakePG{t: t, path: filepath.Join(t.TempDir(), ".s.PGSQL.5432"), sessions: map[uint32]*fakeSession{}, conns: map[net.Conn]struct{}{}}
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = struct{}{}
			f.mu.Unlock()
			f.wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		f.mu.Lock()
		for c := range f.conns {
			_ = c.Close()
		}
		for _, s := range f.sessions {
			s.once.Do(func() { close(s.end) })
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// start starts a proxy before it.
func (f *fakePG) start(t testing.TB, edit func(*Settings)) *env {
	t.Helper()
	return start(t, options{upstream: f.upstream(), edit: func(s *Settings) {
		postgresService(s)
		if edit != nil {
			edit(s)
		}
	}})
}

// upstream is where it is, as a proxy's settings say it.
func (f *fakePG) upstream() string { return "unix://" + filepath.Dir(f.path) }

// postgresService are the settings of a proxy before it.
func postgresService(s *Settings) {
	s.Protocol, s.Hosts = "postgres", nil
	s.Postgres.Auth = "peer"
}

func (f *fakePG) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	first, err := pgwire.ReadFirst(c)
	if err != nil {
		return
	}
	f.mu.Lock()
	if first.Kind == pgwire.KindCancel {
		if s := f.sessions[first.Cancel.PID]; s != nil && bytes.Equal(s.secret, first.Cancel.Secret) {
			f.cancelled = append(f.cancelled, s.pid)
			select {
			case s.cancel <- struct{}{}:
			default:
			}
		}
		f.mu.Unlock()
		return
	}
	s := &fakeSession{pid: uint32(1000 + len(f.started)), cancel: make(chan struct{}, 1), end: make(chan struct{})}
	s.secret = binary.BigEndian.AppendUint32(nil, s.pid*7)
	f.started = append(f.started, first.Startup)
	f.sessions[s.pid] = s
	status := f.status
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sessions, s.pid)
	}()
	if _, err := c.Write(pgwire.Welcome{Client: pgwire.Startup{}, Status: append([]pgwire.Parameter{{Name: "server_version", Value: "15.0"}}, status...), Key: pgwire.Cancel{PID: s.pid, Secret: s.secret}}.Bytes()); err != nil {
		return
	}
	user, _ := first.Startup.Get("user")
	db, _ := first.Startup.Get("database")
	b := pgproto3.NewBackend(c, c)
	for {
		m, err := b.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Query:
			if !f.answer(b, s, user, db, m.String) {
				return
			}
		case *pgproto3.Terminate:
			return
		}
	}
}

// answer answers a query; false ends the session.
func (f *fakePG) answer(b *pgproto3.Backend, s *fakeSession, user, db, query string) bool {
	f.mu.Lock()
	f.queries = append(f.queries, query)
	acting, attrs, members := f.acting, f.attrs, f.members
	f.mu.Unlock()
	rows := func(values ...string) {
		var row pgproto3.DataRow
		for _, v := range values {
			row.Values = append(row.Values, []byte(v))
		}
		b.Send(&row)
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	}
	switch {
	case strings.Contains(query, "pg_terminate_backend"):
		f.mu.Lock()
		for pid, other := range f.sessions {
			if strings.Contains(query, "a.pid = "+itoa(pid)+" ") && strings.Contains(query, "= "+itoa(pid*3)+";") {
				f.ended = append(f.ended, pid)
				other.once.Do(func() { close(other.end) })
			}
		}
		f.mu.Unlock()
		rows("true")
	case query == roleQuery:
		if acting == "" {
			acting = user
		}
		rows(user, acting, db, attrs, members, itoa(s.pid), itoa(s.pid*3))
	case query == "sleep" || query == "stubborn":
		for woken := false; !woken; {
			select {
			case <-s.cancel:
				woken = query == "sleep"
			case <-s.end:
				return false
			}
		}
		b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "57014", Message: "canceled"})
	case strings.HasPrefix(query, "become "):
		b.Send(&pgproto3.ParameterStatus{Name: "session_authorization", Value: strings.TrimPrefix(query, "become ")})
		rows("done")
	default:
		rows(query)
	}
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	return b.Flush() == nil
}

func itoa(n uint32) string {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

// look gives what the fake knows to see.
func (f *fakePG) look(see func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	see()
}

func (f *fakePG) running() (n int) {
	f.look(func() { n = len(f.sessions) })
	return n
}

// pgClient is a client's end of a session.
type pgClient struct {
	t    testing.TB
	conn net.Conn
	f    *pgproto3.Frontend
	key  pgwire.Cancel
	said []pgwire.Parameter
}

// open begins a session; the error is the proxy's, as it came.
func (e *env) open(cert tls.Certificate, params ...string) (*pgClient, *pgproto3.ErrorResponse) {
	e.t.Helper()
	return e.openOn(e.dial(cert, pgALPN), params...)
}

func (e *env) openOn(conn net.Conn, params ...string) (*pgClient, *pgproto3.ErrorResponse) {
	e.t.Helper()
	c := &pgClient{t: e.t, conn: conn}
	c.f = pgproto3.NewFrontend(c.conn, c.conn)
	m := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion32, Parameters: map[string]string{}}
	for i := 0; i < len(params); i += 2 {
		m.Parameters[params[i]] = params[i+1]
	}
	c.f.Send(m)
	if err := c.f.Flush(); err != nil {
		return c, cutShort(err)
	}
	return c, c.until(&pgproto3.ReadyForQuery{})
}

// cutShort is what stands for the proxy's error where none came.
func cutShort(err error) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: "BROKEN", Message: err.Error()}
}

// until reads up to a message of end's type; an ErrorResponse that is FATAL ends it, too.
func (c *pgClient) until(end pgproto3.BackendMessage) *pgproto3.ErrorResponse {
	c.t.Helper()
	for {
		m, err := c.f.Receive()
		if err != nil {
			return cutShort(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			got := *m
			if got.Severity == "FATAL" || got.Code == "57014" {
				return &got
			}
		case *pgproto3.BackendKeyData:
			c.key = pgwire.Cancel{PID: m.ProcessID, Secret: bytes.Clone(m.SecretKey)}
		case *pgproto3.ParameterStatus:
			c.said = append(c.said, pgwire.Parameter{Name: m.Name, Value: m.Value})
		case *pgproto3.ReadyForQuery:
			if _, ok := end.(*pgproto3.ReadyForQuery); ok {
				return nil
			}
		case *pgproto3.DataRow:
			if row, ok := end.(*pgproto3.DataRow); ok {
				*row = pgproto3.DataRow{Values: [][]byte{bytes.Clone(m.Values[0])}}
				return nil
			}
		}
	}
}

func (c *pgClient) send(m pgproto3.FrontendMessage) {
	c.t.Helper()
	c.f.Send(m)
	if err := c.f.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

// ask runs a query and returns what came of it.
func (c *pgClient) ask(query string) string {
	c.t.Helper()
	got, e := c.tryAsk(query)
	if e != nil {
		return e.Severity + " " + e.Code + " " + e.Message
	}
	return got
}

// tryAsk is ask, for a session that may end meanwhile.
func (c *pgClient) tryAsk(query string) (string, *pgproto3.ErrorResponse) {
	c.f.Send(&pgproto3.Query{String: query})
	if err := c.f.Flush(); err != nil {
		return "", cutShort(err)
	}
	var row pgproto3.DataRow
	if e := c.until(&row); e != nil {
		return "", e
	}
	if e := c.until(&pgproto3.ReadyForQuery{}); e != nil {
		return "", e
	}
	return string(row.Values[0]), nil
}

// talk is one exchange, and how the session ended where there is none.
func (c *pgClient) talk() error {
	if err := c.conn.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		return err
	}
	switch got, end := c.tryAsk("x"); {
	case end != nil && end.Severity == "FATAL" && end.Code != "57P01":
		return errWhole // another word than that of a session that is made to end
	case end != nil:
		return fmt.Errorf("%s %s %s", end.Severity, end.Code, end.Message)
	case got != "x":
		return fmt.Errorf("the answer was %q", got)
	}
	return nil
}

// plain sends bytes without TLS and returns what comes back.
func (e *env) plain(b []byte) string {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	_, _ = c.Write(b)
	got, _ := io.ReadAll(c)
	return string(got)
}
