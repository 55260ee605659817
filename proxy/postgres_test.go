package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

const readonlyOfOrders = "postgres orders as readonly"

// TestPostgresSession: a session opens exactly the grant's database as the grant's role, and is recorded.
func TestPostgresSession(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, func(s *Settings) { s.Postgres.QueryLog = "text" })
	id := newGrantID(t)
	c, refused := e.open(e.pki.grantWithID(id, time.Hour, readonlyOfOrders), "user", "readonly", "database", "orders", "application_name", "x", "TimeZone", "UTC")
	if refused != nil {
		t.Fatalf("%+v", refused)
	}
	if got := c.ask("hello"); got != "hello" {
		t.Errorf("%s", got)
	}
	if len(c.key.Secret) != 32 || c.key.PID == 1000 {
		t.Errorf("key %+v", c.key)
	}
	f.look(func() {
		want := []pgwire.Parameter{{Name: "user", Value: "readonly"}, {Name: "database", Value: "orders"}}
		got := f.started[0].Params
		if len(got) != 4 || !slices.Equal(got[:2], want) || !slices.Contains(got, pgwire.Parameter{Name: "timezone", Value: "UTC"}) || f.started[0].Minor != 0 {
			t.Errorf("asked upstream for %+v", got)
		}
	})
	c.send(&pgproto3.Terminate{})
	r := e.record("the end", func(r logLine) bool { return r.Kind == kindConnection && r.Event == "end" })
	if r.Grant != id || r.Permission != readonlyOfOrders || r.Database != "orders" || r.Role != "readonly" || r.Decision != decisionAllow || r.Reason != "" || r.Requests != 1 {
		t.Errorf("%+v", r)
	}
	e.record("the beginning", func(r logLine) bool { return r.Kind == kindConnection && r.Event == "open" && r.Grant == id })
	e.record("the statement", func(r logLine) bool { return r.Kind == kindQuery && r.Query == "hello" && r.Grant == id })
	e.eventually("end of the backend", func() bool { return f.running() == 0 })
}

// TestPostgresScope: nothing but what the grant says, by anybody, reaches the database.
func TestPostgresScope(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	ours := e.pki.grant(time.Hour, readonlyOfOrders)
	for _, row := range []struct {
		name         string
		cert         tls.Certificate
		user, db     string
		reason, hint string
	}{
		{"another role", ours, "admin", "orders", reasonOutsideScope, "hallpass request create payments --allow 'postgres orders as admin' --for 30m --reason '…'"},
		{"another database", ours, "readonly", "other", reasonOutsideScope, "hallpass request create payments --allow 'postgres other as readonly' --for 30m --reason '…'"},
		{"other case", ours, "Readonly", "orders", reasonOutsideScope, `hallpass request create payments --allow 'postgres orders as "Readonly"' --for 30m --reason '…'`},
		{"no database is the user's", ours, "readonly", "", reasonOutsideScope, "hallpass request create payments --allow 'postgres readonly as readonly' --for 30m --reason '…'"},
		{"a name too long", ours, "readonly", strings.Repeat("x", 64), reasonOutsideScope, ""},
		{"an identity", e.pki.identity(alice), "readonly", "orders", reasonNoGrant, "hallpass request create payments --allow 'postgres orders as readonly' --for 30m --reason '…'"},
		{"http", e.pki.grant(time.Hour, "GET /**"), "readonly", "orders", reasonOutsideScope, "hallpass request create payments --allow 'postgres orders as readonly' --for 30m --reason '…'"},
		{"tcp", e.pki.grant(time.Hour, "tcp"), "readonly", "orders", reasonOutsideScope, "hallpass request create payments --allow 'postgres orders as readonly' --for 30m --reason '…'"},
	} {
		_, refused := e.open(row.cert, "user", row.user, "database", row.db)
		if refused == nil || refused.Severity != "FATAL" || refused.Code != "28000" || refused.Hint != row.hint {
			t.Errorf("%s: %+v", row.name, refused)
		}
		e.record(row.name, func(r logLine) bool {
			return r.Kind == kindConnection && r.Decision == decisionDeny && r.Reason == row.reason && r.Role == row.user
		})
	}
	f.look(func() {
		if len(f.started) != 0 {
			t.Errorf("reached the database: %+v", f.started)
		}
	})
}

// TestPostgresParameters: what is not on the list is refused, in whatever case, and by its name.
func TestPostgresParameters(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	cert := e.pki.grant(time.Hour, readonlyOfOrders)
	for _, name := range []string{"options", "Options", "replication", "REPLICATION", "role", "session_authorization", "User", "DATABASE", "session_preload_libraries", "x"} {
		_, refused := e.open(cert, "user", "readonly", "database", "orders", name, "-c role=admin")
		if refused == nil || refused.Severity != "FATAL" || refused.Code != "0A000" && refused.Code != "08P01" || !strings.Contains(strings.ToLower(refused.Message), strings.ToLower(name)) && refused.Code == "0A000" {
			t.Errorf("%s: %+v", name, refused)
		}
	}
	if _, refused := e.open(cert, "database", "orders"); refused == nil || refused.Code != "28000" {
		t.Errorf("no user: %+v", refused)
	}
	f.look(func() {
		if len(f.started) != 0 {
			t.Errorf("reached the database: %+v", f.started)
		}
	})
}

// TestPostgresPlain: nothing is had without TLS, and nothing that came before it counts in it.
func TestPostgresPlain(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	start, err := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "readonly", "database": "orders"}}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := e.plain(start); !strings.Contains(got, "C28000") || !strings.Contains(got, "connections without TLS are not accepted") {
		t.Errorf("%q", got)
	}
	gss := []byte{0, 0, 0, 8, 4, 210, 22, 48}
	if got := e.plain(slices.Concat(gss, start)); !strings.HasPrefix(got, "NE") {
		t.Errorf("%q", got)
	}
	if got := e.plain(slices.Concat(gss, gss)); got != "N" {
		t.Errorf("%q", got)
	}
	// What is sent ahead is not taken for something that came through TLS.
	if got := e.plain(slices.Concat(pgwire.AppendTLSRequest(nil), start)); !strings.HasPrefix(got, "S") || strings.Contains(got, "C28000") {
		t.Errorf("%q", got)
	}
	for _, in := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x08\x00\x00\x00\x00"} {
		if got := e.plain([]byte(in)); got != "" {
			t.Errorf("%q", got)
		}
	}
	e.record("it", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonNotTLS })
	// Within TLS there is nothing more to ask for.
	c := e.dial(e.pki.grant(time.Hour, readonlyOfOrders), pgALPN)
	_, _ = c.Write(pgwire.AppendTLSRequest(nil))
	m, err := pgproto3.NewFrontend(c, c).Receive()
	if refused, ok := m.(*pgproto3.ErrorResponse); err != nil || !ok || refused.Code != "08P01" {
		t.Errorf("%+v %v", m, err)
	}
	// In a tunnel of hallpass connect, which names no protocol, the program behind it may ask, and is told that there is none.
	tunnel := e.dial(e.pki.grant(time.Hour, readonlyOfOrders))
	_, _ = tunnel.Write(pgwire.AppendTLSRequest(nil))
	answer := make([]byte, 1)
	if _, err := tunnel.Read(answer); err != nil || answer[0] != 'N' {
		t.Errorf("%q %v", answer, err)
	}
	_, _ = tunnel.Write(start)
	if m, err := pgproto3.NewFrontend(tunnel, tunnel).Receive(); err != nil {
		t.Errorf("%v %v", m, err)
	}
}

// TestPostgresRole: a role that can become another is not opened.
func TestPostgresRole(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	cert := e.pki.grant(time.Hour, readonlyOfOrders)
	for _, row := range []struct{ attrs, members, acting string }{
		{attrs: "SUPERUSER"}, {attrs: "CREATEROLE, BYPASSRLS"}, {members: "admin"}, {acting: "admin"},
	} {
		f.look(func() { f.attrs, f.members, f.acting = row.attrs, row.members, row.acting })
		_, refused := e.open(cert, "user", "readonly", "database", "orders")
		if refused == nil || refused.Code != "28000" || !strings.Contains(refused.Message, "it could become another") {
			t.Errorf("%+v: %+v", row, refused)
		}
	}
	f.look(func() { f.attrs, f.members, f.acting = "", "", "" })
	c, refused := e.open(cert, "user", "readonly", "database", "orders")
	if refused != nil {
		t.Fatalf("%+v", refused)
	}
	// And one that becomes another all the same is ended at the first word of it.
	if got := c.ask("become readonly"); got != "done" {
		t.Errorf("%s", got)
	}
	if got := c.ask("become admin"); !strings.Contains(got, "FATAL 57P01 hallpass: the session became another role's") {
		t.Errorf("%s", got)
	}
	e.record("the change", func(r logLine) bool { return r.Reason == reasonRoleChanged })
	e.eventually("end of the backend", func() bool { return f.running() == 0 })
}

// TestPostgresCut: at the end of a grant the client is told, and the backend ends, however stubborn.
func TestPostgresCut(t *testing.T) {
	for _, query := range []string{"idle", "sleep", "stubborn"} {
		t.Run(query, func(t *testing.T) {
			f := startFakePG(t)
			e := f.start(t, nil)
			c, refused := e.open(e.pki.grant(time.Hour, readonlyOfOrders), "user", "readonly", "database", "orders")
			if refused != nil {
				t.Fatalf("%+v", refused)
			}
			if query != "idle" {
				c.send(&pgproto3.Query{String: query})
				e.eventually("query", func() (seen bool) { f.look(func() { seen = slices.Contains(f.queries, query) }); return seen })
			}
			e.clock.moveOn(2 * time.Hour)
			if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "57P01" || !strings.Contains(got.Message, "the grant certificate has expired") {
				t.Errorf("%+v", got)
			}
			e.record("the cut", func(r logLine) bool { return r.Kind == kindConnection && r.Event == "end" && r.Reason == reasonExpired })
			e.eventually("end of the backend", func() bool { return f.running() == 0 })
			f.look(func() {
				if query != "idle" && len(f.cancelled) == 0 {
					t.Error("the statement was not cancelled")
				}
				if (query == "stubborn") != (len(f.ended) > 0) {
					t.Errorf("ended %v", f.ended)
				}
			})
		})
	}
}

// TestPostgresClientGone: who leaves in the middle leaves nothing behind that goes on after the grant.
func TestPostgresClientGone(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	c, refused := e.open(e.pki.grant(time.Hour, readonlyOfOrders), "user", "readonly", "database", "orders")
	if refused != nil {
		t.Fatalf("%+v", refused)
	}
	c.send(&pgproto3.Query{String: "stubborn"})
	e.eventually("query", func() (seen bool) { f.look(func() { seen = slices.Contains(f.queries, "stubborn") }); return seen })
	raw, ok := c.conn.(*tls.Conn)
	if !ok {
		t.Fatal("no TLS")
	}
	_ = raw.NetConn().Close()
	e.record("the end", func(r logLine) bool {
		return r.Kind == kindConnection && r.Event == "end" && r.Reason == reasonClientGone
	})
	e.eventually("end of the backend", func() bool { return f.running() == 0 })
}

// TestPostgresCarried: through hallpass connect, whose programs know nothing of TLS: a session, its cancel, and its end.
func TestPostgresCarried(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, readonlyOfOrders)})
	cfg.TCP = true
	addr := e.connect(cfg, "127.0.0.1:0")
	dial := func() net.Conn {
		c := dialLocal(t, addr)
		if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	local := dial()
	_, _ = local.Write(pgwire.AppendTLSRequest(nil)) // as sslmode=prefer has it
	answer := make([]byte, 1)
	if _, err := local.Read(answer); err != nil || answer[0] != 'N' {
		t.Fatalf("%q %v", answer, err)
	}
	c, refused := e.openOn(local, "user", "readonly", "database", "orders")
	if refused != nil {
		t.Fatalf("%+v", refused)
	}
	if got := c.ask("hello"); got != "hello" {
		t.Errorf("%s", got)
	}
	c.send(&pgproto3.Query{String: "sleep"})
	e.eventually("query", func() (seen bool) { f.look(func() { seen = slices.Contains(f.queries, "sleep") }); return seen })
	cancel := dial()
	_, _ = cancel.Write(c.key.Append(nil))
	_, _ = cancel.Read(make([]byte, 1))
	if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "57014" {
		t.Errorf("%+v", got)
	}
	if _, refused := e.openOn(dial(), "user", "admin", "database", "orders"); refused == nil || refused.Code != "28000" || refused.Hint == "" {
		t.Errorf("%+v", refused)
	}
	_ = c.until(&pgproto3.ReadyForQuery{})
	c.send(&pgproto3.Query{String: "stubborn"})
	e.eventually("query", func() (seen bool) { f.look(func() { seen = slices.Contains(f.queries, "stubborn") }); return seen })
	e.clock.moveOn(2 * time.Hour)
	if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "57P01" && got.Severity != "BROKEN" {
		t.Errorf("%+v", got)
	}
	e.record("the cut", func(r logLine) bool { return r.Role == "readonly" && r.Event == "end" && r.Reason == reasonExpired })
	e.eventually("end of the backend", func() bool { return f.running() == 0 })
}

// TestPostgresCancel: a session's key, its own certificate, and nothing else cancels.
func TestPostgresCancel(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	cert := e.pki.grant(time.Hour, readonlyOfOrders)
	c, refused := e.open(cert, "user", "readonly", "database", "orders")
	if refused != nil {
		t.Fatalf("%+v", refused)
	}
	c.send(&pgproto3.Query{String: "sleep"})
	overTLS := func(cert tls.Certificate, key pgwire.Cancel) {
		t.Helper()
		conn := e.dial(cert, pgALPN)
		_, _ = conn.Write(key.Append(nil))
		_, _ = conn.Read(make([]byte, 1)) // it says nothing, and closes
	}
	near := pgwire.Cancel{PID: c.key.PID, Secret: slices.Clone(c.key.Secret)}
	near.Secret[31] ^= 1
	overTLS(cert, near)
	overTLS(cert, pgwire.Cancel{PID: 1000, Secret: []byte{0, 0, 27, 88}}) // the backend's own
	overTLS(e.pki.grant(time.Hour, readonlyOfOrders), c.key)
	overTLS(e.pki.identity(alice), c.key)
	e.plain(near.Append(nil))
	for reason, n := range map[string]int{reasonWrongKey: 3, reasonCancelOther: 2} {
		got := 0
		for _, r := range e.records() {
			if r.Kind == kindCancel && r.Decision == decisionDeny && r.Reason == reason {
				got++
			}
		}
		if got != n {
			t.Errorf("%d records of %s, want %d", got, reason, n)
		}
	}
	f.look(func() {
		if len(f.cancelled) != 0 {
			t.Fatal("somebody else cancelled it")
		}
	})
	overTLS(cert, c.key)
	if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "57014" {
		t.Errorf("%+v", got)
	}
	e.record("the cancel", func(r logLine) bool {
		return r.Kind == kindCancel && r.Decision == decisionAllow && r.Role == "readonly"
	})
	if e := c.until(&pgproto3.ReadyForQuery{}); e != nil {
		t.Fatalf("%+v", e)
	}
	c.send(&pgproto3.Query{String: "sleep"})
	e.plain(c.key.Append(nil)) // as psql does
	if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "57014" {
		t.Errorf("%+v", got)
	}
	for range 2 * wrongKeysOfOne {
		e.plain(near.Append(nil))
	}
	e.record("the limit", func(r logLine) bool { return r.Kind == kindCancel && r.Reason == reasonCancels })

	strict := f.start(t, func(s *Settings) { s.Postgres.Cancel = "tls" })
	strict.plain(c.key.Append(nil))
	strict.record("the refusal", func(r logLine) bool { return r.Kind == kindCancel && r.Reason == reasonPlainCancel })
}

// TestPostgresMessages: what is no message of a session ends it, in words, before the database sees it.
func TestPostgresMessages(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, func(s *Settings) { s.Postgres.MaxMessageBytes, s.Postgres.QueryLog = 64<<10, "fingerprint" })
	cert := e.pki.grant(time.Hour, readonlyOfOrders)
	for name, m := range map[string]pgproto3.FrontendMessage{
		"a password":                      &pgproto3.PasswordMessage{Password: "x"},
		"too long":                        &pgproto3.Query{String: strings.Repeat("x", 70000)},
		"a name that hides the statement": &pgproto3.Parse{Name: strings.Repeat("n", 20000), Query: "SELECT 1"},
	} {
		c, refused := e.open(cert, "user", "readonly", "database", "orders")
		if refused != nil {
			t.Fatalf("%+v", refused)
		}
		c.f.Send(m)
		_ = c.f.Flush() // it may be refused before all of it was sent
		if got := c.until(&pgproto3.ReadyForQuery{}); got == nil || got.Code != "08P01" && got.Severity != "BROKEN" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	e.record("it", func(r logLine) bool { return r.Reason == reasonProtocol })
	e.eventually("end of the backends", func() bool { return f.running() == 0 })
	f.look(func() {
		for _, q := range f.queries {
			if strings.Contains(q, "xxx") {
				t.Error("it reached the database")
			}
		}
	})
}

// TestRoleFacts: by each of these a role can become another.
func TestRoleFacts(t *testing.T) {
	good := roleFacts{session: "r", current: "r", database: "d"}
	if err := good.check("d", "r"); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*roleFacts){
		"SUPERUSER":  func(f *roleFacts) { f.attributes = []string{"SUPERUSER"} },
		"a member":   func(f *roleFacts) { f.memberships = "admin" },
		"acting as":  func(f *roleFacts) { f.current = "admin" },
		"one as x":   func(f *roleFacts) { f.session, f.current = "x", "x" },
		"in another": func(f *roleFacts) { f.database = "another" },
	} {
		f := good
		change(&f)
		if err := f.check("d", "r"); !errors.Is(err, errRole) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPasswordFile: like .pgpass, but nothing in it is passed over.
func TestPasswordFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pgpass")
	pg := &pgConfig{auth: pgwire.AuthSCRAM, host: "db.test", port: "5432", passwordFile: path}
	writeFile(t, path, []byte("# ours\n\ndb.test:5432:orders:readonly:p\\:w\\\\\n*:*:*:readonly:other\ndb.test:1:*:*:no\r\n"))
	for _, row := range []struct{ db, role, want string }{{"orders", "readonly", `p:w\`}, {"x", "readonly", "other"}, {"orders", "admin", ""}} {
		got, err := pg.credentials(row.db, row.role)
		if got.Password != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%+v: %+v %v", row, got, err)
		}
	}
	for _, bad := range []string{"", "# nothing\n", "a:b:c:d\n", "a:b:c:d:e:f\n", "a:b:c:d:\n", "a:b:c:d:e\\\n", "::::\n", "a:b:c:d:pä\n"} {
		writeFile(t, path, []byte(bad))
		if _, err := readPasswords(path); !errors.Is(err, ErrMaterial) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	writeFile(t, path, []byte("*:*:*:*:x\n"))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := readPasswords(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
	if _, err := readPasswords(path + "none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

const goodPostgres = `service: orders
listen: 127.0.0.1:9443
protocol: postgres
upstream: postgres://db.test:5432
trust_domain: acme.test
certificate: cert.pem
key: key.pem
identity_bundle: id.pem
grants_bundle: grants.pem
access_log: {path: access.jsonl}
postgres:
  auth: scram
  password_file: pgpass
  tls: verify-full
  tls_roots: db-ca.pem
  query_log: fingerprint
  query_log_bytes: 512
  cancel: tls
`

// TestPostgresSettings: every mistake is told with its file, line and key.
func TestPostgresSettings(t *testing.T) {
	s, err := parseSettings("/etc/hp/proxy.yaml", []byte(goodPostgres))
	if err == nil {
		err = s.Check()
	}
	if err != nil || s.Postgres.PasswordFile != "/etc/hp/pgpass" || s.Postgres.TLSRoots != "/etc/hp/db-ca.pem" {
		t.Fatalf("%+v %v", s.Postgres, err)
	}
	for _, row := range []struct{ name, old, new, want string }{
		{"another protocol", "protocol: postgres\nupstream: postgres://db.test:5432", "protocol: tcp\nupstream: tcp://db.test:5432", "proxy.yaml:11: postgres: is for protocol: postgres"},
		{"hosts", "service: orders", "service: orders\nhosts: [x.test]", "proxy.yaml:2: hosts: is for protocol: http"},
		{"upstream", "postgres://db.test:5432", "postgres://u:p@db.test:5432", "proxy.yaml:4: upstream: want postgres://"},
		{"upstream with a database", "postgres://db.test:5432", "postgres://db.test:5432/orders", "proxy.yaml:4: upstream: want postgres://"},
		{"tcp upstream", "postgres://db.test:5432", "tcp://db.test:5432", "proxy.yaml:4: upstream: want postgres://"},
		{"auth", "auth: scram", "auth: md5", `proxy.yaml:12: postgres.auth: "md5" is none of`},
		{"no passwords", "  password_file: pgpass\n", "", "proxy.yaml:11: postgres.password_file: is missing"},
		{"no roots", "  tls_roots: db-ca.pem\n", "", "proxy.yaml:11: postgres.tls_roots: is missing"},
		{"plain to elsewhere", "tls: verify-full\n  tls_roots: db-ca.pem", "tls: disable", "proxy.yaml:14: postgres.tls: disable: db.test is not loopback"},
		{"half TLS", "tls: verify-full", "tls: require", `proxy.yaml:14: postgres.tls: "require" is neither`},
		{"TLS on a socket", "postgres://db.test:5432", "unix:///run/postgresql", "proxy.yaml:14: postgres.tls: \"verify-full\": there is no TLS on a Unix socket"},
		{"peer over TCP", "auth: scram", "auth: peer", "proxy.yaml:12: postgres.auth: peer needs a Unix socket"},
		{"certificate without one", "auth: scram", "auth: certificate", "postgres.certificate: is missing"},
		{"passwords unused", "auth: scram", "auth: certificate\n  certificate: c.pem\n  key: k.pem", "postgres.password_file: is not used with auth: certificate"},
		{"half a pair", "auth: scram", "auth: scram\n  certificate: c.pem", "postgres.key: certificate and key come together"},
		{"query log", "query_log: fingerprint", "query_log: all", `proxy.yaml:16: postgres.query_log: "all" is none of`},
		{"query log bytes", "query_log_bytes: 512", "query_log_bytes: 1000000", "proxy.yaml:17: postgres.query_log_bytes: 1000000 is not within"},
		{"cancel", "cancel: tls", "cancel: never", `proxy.yaml:18: postgres.cancel: "never" is neither`},
		{"unknown key", "cancel: tls", "cancels: tls", `proxy.yaml:18: unknown key "cancels"`},
		{"PROXY protocol to it", "service: orders", "service: orders\nupstream_proxy_protocol: v2", "proxy.yaml:2: upstream_proxy_protocol: is not for postgres"},
	} {
		text := strings.Replace(goodPostgres, row.old, row.new, 1)
		if text == goodPostgres {
			t.Fatalf("%s: nothing was replaced", row.name)
		}
		s, err := parseSettings("proxy.yaml", []byte(text))
		if err == nil {
			err = s.Check()
		}
		if !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v\nwant %s", row.name, err, row.want)
		}
	}
	for in, want := range map[string]string{"unix:///run/postgresql": "/run/postgresql/.s.PGSQL.5432", "unix:///run/postgresql/": "/run/postgresql/.s.PGSQL.5432", "unix:///x/.s.PGSQL.6000": "/x/.s.PGSQL.6000"} {
		if got, err := parsePostgresTarget(in); err != nil || got.address != want || got.network != "unix" {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
}

// TestPostgresChangedMeanwhile: a client that has shown its certificate and keeps what it wants to
// itself, until the rules are others, is judged by those.
func TestPostgresChangedMeanwhile(t *testing.T) {
	f := startFakePG(t)
	e := f.start(t, nil)
	conn := e.dial(e.pki.grant(time.Hour, readonlyOfOrders), pgALPN)
	e.eventually("the connection", func() bool { return e.px.live.len() == 1 })
	s := e.settings
	s.Limits.Sources = []string{"203.0.113.0/24"}
	cfg, err := newConfig(Config{Settings: s, Now: e.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	next, err := e.px.under(cfg)
	if err != nil {
		t.Fatal(err)
	}
	next.inForce(e.px)
	if _, refused := e.openOn(conn, "user", "readonly", "database", "orders"); refused == nil || refused.Severity != "FATAL" {
		t.Errorf("from elsewhere than limits.sources: %+v", refused)
	}
	e.record("the refusal", func(r logLine) bool { return r.Decision == decisionDeny && r.Reason == reasonSource })
}
