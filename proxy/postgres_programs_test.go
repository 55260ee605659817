//go:build integration

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const readonlyPerm = "postgres orders as readonly"

// TestPostgres runs psql and pgx through the proxy against a real PostgreSQL.
func TestPostgres(t *testing.T) {
	c := startCluster(t)
	c.sql("postgres", "SELECT 1")
	for statement := range strings.SplitSeq(strings.TrimSpace(setup), ";\n") {
		c.sql("postgres", statement)
	}
	c.sql("orders", setupOrders)
	for _, sub := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"Psql", testPsql},
		{"Denied", testPGDenied},
		{"Copy", testPGCopy},
		{"Pipeline", testPGPipeline},
		{"Notify", testPGNotify},
		{"Cancel", testPGCancel},
		{"QueryLog", testPGQueryLog},
		{"Cut", testPGCut},
		{"Roles", testPGRoles},
		{"Pinned", testPGPinned},
		{"Attacks", testPGAttacks},
	} {
		t.Run(sub.name, func(t *testing.T) {
			of := *c
			of.t = t
			sub.run(t, &of)
		})
	}
}

func psql(t *testing.T, dsn, stdin string, args ...string) string {
	t.Helper()
	return run(t, stdin, "psql", append([]string{"-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", dsn}, args...)...)
}

func testPsql(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	id := newGrantID(t)
	dsn := e.pgDSNOf("orders", "readonly", id, time.Hour, readonlyPerm)
	if got := psql(t, dsn, "", "-c", "SELECT session_user, current_user, current_database(), count(*) FROM t"); got != "readonly|readonly|orders|1000\n" {
		t.Errorf("%s", got)
	}
	r := e.record("the session", func(r logLine) bool { return r.Kind == kindConnection && r.Event == "end" })
	if r.Grant != id || r.Permission != readonlyPerm || r.Database != "orders" || r.Role != "readonly" || r.Decision != decisionAllow ||
		r.Reason != "" || r.Protocol != "postgres" || r.Serial == "" || r.Issuer == "" || r.Subject != alice || r.BytesIn == 0 || r.BytesOut == 0 || r.Requests != 1 {
		t.Errorf("%+v", r)
	}
	e.record("its beginning", func(r logLine) bool { return r.Event == "open" && r.Database == "orders" })
	if got := psql(t, dsn, "", "-c", "SELECT * FROM secret"); !strings.Contains(got, "permission denied for table secret") {
		t.Errorf("%s", got)
	}
	// What is allowed at the start arrives, under any case.
	if got := psql(t, dsn+" application_name='a b' client_encoding=LATIN1", "", "-c", "SELECT current_setting('application_name'), current_setting('client_encoding')"); got != "a b|LATIN1\n" {
		t.Errorf("%s", got)
	}
	if got := run(t, "", "psql", "-X", strings.Replace(dsn, "sslmode=verify-full", "sslmode=disable", 1), "-c", "SELECT 1"); !strings.Contains(got, "connections without TLS are not accepted") || !strings.Contains(got, "sslmode=verify-full") {
		t.Errorf("plain: %s", got)
	}
	// libpq from PostgreSQL 17 on can begin with TLS at once; pgx can as well.
	conn := e.pg(dsn + " sslnegotiation=direct")
	if got, err := askPG(t, conn, "SELECT current_user"); err != nil || got[0] != "readonly" {
		t.Errorf("direct: %v %v", got, err)
	}
	// And version 3.2 of the protocol, with its longer keys.
	newer := e.pg(dsn + " max_protocol_version=3.2")
	if n := len(newer.SecretKey()); n != 32 {
		t.Errorf("a secret key of %d bytes", n)
	}
	if n := len(conn.SecretKey()); n != 4 {
		t.Errorf("a secret key of %d bytes", n)
	}
	if newer.PID() == 0 || fmt.Sprint(newer.PID()) == c.sql("postgres", "SELECT pid FROM pg_stat_activity WHERE usename='readonly' LIMIT 1")[0] {
		t.Error("the backend's own process id was given away")
	}

	// By way of a socket.
	sock := c.proxyFor(t, func(s *Settings) {
		s.Upstream = "unix://" + c.Socket()
		s.Postgres = PostgresSettings{Auth: "peer"}
	})
	if got := psql(t, sock.pgDSN("orders", "peeruser", time.Hour, "postgres orders as peeruser"), "", "-c", "SELECT current_user"); got != "peeruser\n" {
		t.Errorf("%s", got)
	}
}

func testPGDenied(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	dir := t.TempDir()
	writePair(t, dir, e.pki.identity(alice))
	for _, row := range []struct{ name, dsn, message, hint, reason string }{
		{"identity", e.pgDSNIn(dir, "orders", "readonly"), `no grant opens database "orders" as role "readonly"`, "hallpass request create payments --allow 'postgres orders as readonly' --for 30m --reason '…'", reasonNoGrant},
		{"another role", e.pgDSN("orders", "writer", time.Hour, readonlyPerm), `as role "writer"`, "hallpass request create payments --allow 'postgres orders as writer' --for 30m --reason '…'", reasonOutsideScope},
		{"another database", e.pgDSN("other", "readonly", time.Hour, readonlyPerm), `database "other"`, "hallpass request create payments --allow 'postgres other as readonly' --for 30m --reason '…'", reasonOutsideScope},
		{"a name to quote", e.pgDSN("'my \"db'", "readonly", time.Hour, readonlyPerm), `database "my \"db"`, `hallpass request create payments --allow 'postgres "my ""db" as readonly' --for 30m --reason '…'`, reasonOutsideScope},
		{"http", e.pgDSN("orders", "readonly", time.Hour, "GET /**"), "no grant opens", "hallpass request create payments --allow 'postgres orders as readonly' --for 30m --reason '…'", reasonOutsideScope},
	} {
		_, err := e.tryPG(row.dsn)
		var said *pgconn.PgError
		if !errors.As(err, &said) || said.Code != "28000" || said.Severity != "FATAL" || !strings.Contains(said.Message, row.message) || said.Hint != row.hint {
			t.Errorf("%s: %v, %+v", row.name, err, said)
		}
		if got := psql(t, row.dsn, "", "-c", "SELECT 1"); !strings.Contains(got, "HINT:  "+row.hint) {
			t.Errorf("%s: psql says %s", row.name, got)
		}
		e.record(row.name, func(r logLine) bool {
			return r.Kind == kindConnection && r.Decision == decisionDeny && r.Reason == row.reason && r.Database != ""
		})
	}
	if got := c.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('orders', 'other')"); got[0] != "0" {
		t.Errorf("%s sessions reached the database", got)
	}
}

func testPGCopy(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	dsn := e.pgDSN("orders", "readonly", time.Hour, readonlyPerm)
	conn := e.pg(dsn)
	if _, err := askPG(t, conn, "CREATE TEMP TABLE big (id int, name text)"); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	for i := range 50000 {
		fmt.Fprintf(&in, "%d\t%s\n", i, strings.Repeat("x", i%100))
	}
	want := in.String()
	tag, err := conn.CopyFrom(t.Context(), &in, "COPY big FROM STDIN")
	if err != nil || tag.RowsAffected() != 50000 {
		t.Fatalf("%v %v", tag, err)
	}
	var out bytes.Buffer
	if _, err := conn.CopyTo(t.Context(), &out, "COPY (SELECT * FROM big ORDER BY id) TO STDOUT"); err != nil || out.String() != want {
		t.Errorf("%v; %d bytes came back of %d", err, out.Len(), len(want))
	}
	// One value of 20 MB, which is one message, either way.
	if got, err := askPG(t, conn, "SELECT length('"+strings.Repeat("y", 20<<20)+"')"); err != nil || got[0] != fmt.Sprint(20<<20) {
		t.Errorf("%v", err)
	}
	if got, err := askPG(t, conn, "SELECT repeat('z', 20000000)"); err != nil || len(got[0]) != 20000000 {
		t.Errorf("%v", err)
	}
	// A copy that the client gives up leaves a session that goes on.
	if _, err := conn.CopyFrom(t.Context(), brokenReader{}, "COPY big FROM STDIN"); err == nil {
		t.Error("a broken copy succeeded")
	}
	if got, err := askPG(t, conn, "SELECT count(*) FROM big"); err != nil || got[0] != "50000" {
		t.Errorf("%v %v", got, err)
	}
	if got := psql(t, dsn, "1\tone\n2\ttwo\n", "-c", `CREATE TEMP TABLE p (id int, name text)`, "-c", `\copy p from stdin`, "-c", `\copy p to stdout`); got != "CREATE TABLE\nCOPY 2\n1\tone\n2\ttwo\n" {
		t.Errorf("%q", got)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

func testPGPipeline(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	conn := e.pg(e.pgDSN("orders", "readonly", time.Hour, readonlyPerm))
	p := conn.StartPipeline(t.Context())
	p.SendPrepare("one", "SELECT $1::int + 1", nil)
	const many = 2000
	for i := range many {
		p.SendQueryPrepared("one", [][]byte{fmt.Append(nil, i)}, nil, nil)
		if i%100 == 99 {
			if err := p.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	answers := 0
	for answers < many {
		res, err := p.GetResults()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := res.(*pgconn.ResultReader); ok {
			got := r.Read()
			if got.Err != nil || string(got.Rows[0][0]) != fmt.Sprint(answers+1) {
				t.Fatalf("%d: %s %v", answers, got.Rows, got.Err)
			}
			answers++
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if got, err := askPG(t, conn, "DO $$ BEGIN RAISE NOTICE 'hear'; END $$; SELECT 7"); err != nil || got[0] != "7" {
		t.Errorf("%v %v", got, err)
	}
}

func testPGNotify(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	dsn := e.pgDSN("orders", "readonly", time.Hour, readonlyPerm)
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { heard <- n.Payload }
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := askPG(t, conn, "LISTEN news"); err != nil {
		t.Fatal(err)
	}
	if _, err := askPG(t, e.pg(dsn), "NOTIFY news, 'it is out'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := conn.WaitForNotification(ctx); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "it is out" {
		t.Errorf("%s", got)
	}
}

// TestPostgres's cancels: each client's own way, and nobody else's key.
func testPGCancel(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	dsn := e.pgDSN("orders", "readonly", time.Hour, readonlyPerm)
	asleep := func(what string) {
		t.Helper()
		e.eventually(what, func() bool {
			return c.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' AND datname = 'orders'")[0] == "1"
		})
	}
	// psql of PostgreSQL 15 sends it in the clear.
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "psql", "-X", dsn, "-c", "SELECT pg_sleep(600)")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	asleep("psql's sleeper")
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait() // what it says is what counts
	if !strings.Contains(out.String(), "canceling statement due to user request") {
		t.Errorf("psql: %s", out.String())
	}
	e.record("psql's cancel", func(r logLine) bool {
		return r.Kind == kindCancel && r.Decision == decisionAllow && r.Role == "readonly" && r.Grant != ""
	})

	// pgx sends it through TLS, with its certificate.
	conn := e.pg(dsn)
	done := make(chan error, 1)
	go func() { _, err := askPG(t, conn, "SELECT pg_sleep(600)"); done <- err }()
	asleep("sleeper")
	stranger := e.pg(e.pgDSN("orders", "readonly", time.Hour, readonlyPerm))
	other := e.pg(e.pgDSN("orders", "writer", time.Hour, "postgres orders as writer"))
	// Another grant's session has another key, and the backend's process id opens nothing.
	for _, s := range []*pgconn.PgConn{stranger, other} {
		if err := s.CancelRequest(ctx); err != nil {
			t.Error(err)
		}
	}
	// A key that was stolen opens nothing with another grant's certificate.
	hj, err := stranger.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	hj.PID, hj.SecretKey = conn.PID(), conn.SecretKey()
	thief, err := pgconn.Construct(hj)
	if err != nil {
		t.Fatal(err)
	}
	if err := thief.CancelRequest(ctx); err != nil {
		t.Error(err)
	}
	e.record("the theft", func(r logLine) bool {
		return r.Kind == kindCancel && r.Decision == decisionDeny && r.Reason == reasonCancelOther
	})
	_ = thief.Close(ctx)
	select {
	case err := <-done:
		t.Fatalf("somebody else cancelled it: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := conn.CancelRequest(ctx); err != nil {
		t.Error(err)
	}
	var said *pgconn.PgError
	if err := <-done; !errors.As(err, &said) || said.Code != "57014" {
		t.Errorf("%v", err)
	}
	if got, err := askPG(t, conn, "SELECT 1"); err != nil || got[0] != "1" {
		t.Errorf("after the cancel: %v %v", got, err)
	}
}

func testPGQueryLog(t *testing.T, c *cluster) {
	e := c.proxyFor(t, func(s *Settings) { s.Postgres.QueryLog, s.Postgres.QueryLogBytes = "text", 64 })
	conn := e.pg(e.pgDSN("orders", "readonly", time.Hour, readonlyPerm))
	if _, err := askPG(t, conn, "SELECT 1 /* \n \"x\" */"); err != nil {
		t.Fatal(err)
	}
	if res := conn.ExecParams(t.Context(), "SELECT name FROM t WHERE id = $1", [][]byte{[]byte("7")}, nil, nil, nil).Read(); res.Err != nil || string(res.Rows[0][0]) != "row 7" {
		t.Errorf("%+v", res)
	}
	if _, err := askPG(t, conn, "SELECT '"+strings.Repeat("long", 50000)+"'"); err != nil {
		t.Fatal(err)
	}
	e.record("simple", func(r logLine) bool {
		return r.Kind == kindQuery && r.Query == "SELECT 1 /* \n \"x\" */" && r.Method == "query" && r.Grant != "" && r.Role == "readonly" && r.Fingerprint != ""
	})
	e.record("prepared", func(r logLine) bool {
		return r.Kind == kindQuery && r.Query == "SELECT name FROM t WHERE id = $1" && r.Method == "parse"
	})
	e.record("long", func(r logLine) bool {
		return r.Kind == kindQuery && len(r.Query) == 64 && r.QueryBytes == 200010
	})
	prints := c.proxyFor(t, func(s *Settings) { s.Postgres.QueryLog = "fingerprint" })
	conn = prints.pg(prints.pgDSN("orders", "readonly", time.Hour, readonlyPerm))
	for _, q := range []string{"SELECT * FROM t WHERE id = 1", "select *  from T where id=2 -- secret"} {
		if _, err := askPG(t, conn, q); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, r := range prints.records() {
		if r.Kind == kindQuery {
			got = append(got, r.Fingerprint)
			if r.Query != "" {
				t.Errorf("text in %+v", r)
			}
		}
	}
	if len(got) != 2 || got[0] != got[1] || len(got[0]) != 16 {
		t.Errorf("%v", got)
	}
}
