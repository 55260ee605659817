//go:build integration

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// sessionsOf counts the sessions of a role that the database has.
func (c *cluster) sessionsOf(role string) string {
	c.t.Helper()
	return c.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = '"+role+"'")[0]
}

// stubborn goes on for ever, whatever is cancelled.
const stubborn = `DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$`

// testPGCut: at the end of a grant its sessions are told, and end, with what they were doing in the database.
func testPGCut(t *testing.T, c *cluster) {
	node := startControl(t, c.pki, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := c.proxyFor(t, withFeed(node.url))
	e.eventually("feed", func() bool { return e.px.rev.cur.Load().epoch == 1 })
	for _, row := range []struct{ name, query string }{
		{"idle", ""},
		{"sleep", "SELECT pg_sleep(600)"},
		{"stubborn", stubborn},
		{"answer", "SELECT repeat('x', 1000000) FROM generate_series(1, 1000000)"},
	} {
		for _, why := range []string{reasonExpired, reasonRevoked} {
			t.Run(row.name+" "+why, func(t *testing.T) {
				e := e.with(t)
				ttl := time.Hour
				if why == reasonExpired {
					ttl = 4 * time.Second
				}
				id := newGrantID(t)
				end := time.Now().Add(ttl).Truncate(time.Second) // certificates know no less
				conn := e.pg(e.pgDSNOf("orders", "readonly", id, ttl, readonlyPerm))
				done := make(chan error, 1)
				go func() {
					if row.query == "" {
						ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
						defer cancel()
						done <- conn.WaitForNotification(ctx)
						return
					}
					_, err := askPG(t, conn, row.query)
					done <- err
				}()
				if why == reasonRevoked {
					e.eventually("a running statement", func() bool {
						return row.query == "" || c.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'readonly' AND state = 'active'")[0] != "0"
					})
					end = time.Now()
					node.revoke(id)
				}
				err := <-done
				late := time.Since(end)
				var said *pgconn.PgError
				if told := errors.As(err, &said); err == nil || told && (said.Code != "57P01" || !strings.Contains(said.Message, "hallpass: terminating connection")) || !told && row.name != "answer" {
					t.Errorf("ended with %v, %+v", err, said)
				}
				t.Logf("ended %s late: %v", late, err)
				if late > time.Second+patience/3 || late < 0 { // a second, and a busy machine's
					t.Errorf("ended %s late", late)
				}
				e.eventually("end of the backend", func() bool { return c.sessionsOf("readonly") == "0" })
				t.Logf("the backend is gone %s after the end", time.Since(end))
				e.record("the cut", func(r logLine) bool {
					return r.Kind == kindConnection && r.Event == "end" && r.Grant == id && r.Reason == why
				})
			})
		}
	}
	// Who leaves in the middle takes along what was under way, or it would go on after the grant has ended.
	conn := e.pg(e.pgDSN("orders", "readonly", time.Hour, readonlyPerm))
	go func() { _, _ = askPG(t, conn, stubborn) }()
	e.eventually("a running statement", func() bool { return c.sessionsOf("readonly") == "1" })
	_ = conn.Conn().Close()
	e.eventually("end of the backend", func() bool { return c.sessionsOf("readonly") == "0" })

	// And psql says why.
	got := psql(t, e.pgDSN("orders", "readonly", 2*time.Second, readonlyPerm), "", "-c", "SELECT pg_sleep(600)")
	if !strings.Contains(got, "hallpass: terminating connection: the grant certificate has expired") {
		t.Errorf("psql: %s", got)
	}
}

// testPGRoles: a role that could become another is not opened, and the doctor says why.
func testPGRoles(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	s := e.settings
	for _, row := range []struct{ role, why string }{
		{"super", "it has SUPERUSER"},
		{"creator", "it has CREATEROLE"},
		{"repl", "it has REPLICATION"},
		{"bypass", "it has BYPASSRLS"},
		{"member", "it is a member of admin, outer_group"},
		{"noinherit", "it is a member of writer"},
	} {
		_, err := e.tryPG(e.pgDSN("orders", row.role, time.Hour, "postgres orders as "+row.role))
		var said *pgconn.PgError
		if !errors.As(err, &said) || said.Code != "28000" || !strings.Contains(said.Message, "it could become another") || said.Hint == "" {
			t.Errorf("%s: %v", row.role, err)
		}
		e.record(row.role, func(r logLine) bool {
			return r.Role == row.role && r.Decision == decisionDeny && r.Reason == reasonRole
		})
		if !strings.Contains(e.logs.String(), row.why) {
			t.Errorf("no %q in the log", row.why)
		}
		findings, err := CheckPostgres(t.Context(), s, []PostgresRole{{"orders", row.role}})
		if err != nil || !slices.ContainsFunc(findings, func(f PostgresFinding) bool {
			return f.Refused && f.Role == row.role && strings.Contains(f.Text, row.why)
		}) {
			t.Errorf("%s: the doctor says %+v, %v", row.role, findings, err)
		}
	}
	// Good ones are, and what they may run as others is said.
	findings, err := CheckPostgres(t.Context(), s, nil)
	if err == nil {
		t.Errorf("the password file names no database, and still: %v", findings)
	}
	findings, err = CheckPostgres(t.Context(), s, []PostgresRole{{"orders", "readonly"}})
	if err != nil || slices.ContainsFunc(findings, func(f PostgresFinding) bool { return f.Refused }) {
		t.Errorf("%+v %v", findings, err)
	}
	for _, want := range []string{"may call public.definer() as admin", "may change its own password"} {
		if !slices.ContainsFunc(findings, func(f PostgresFinding) bool { return strings.Contains(f.Text, want) }) {
			t.Errorf("no %q in %+v", want, findings)
		}
	}
	findings, err = CheckPostgres(t.Context(), s, []PostgresRole{{"orders", "nobody"}, {"nothing", "readonly"}})
	if err != nil || len(findings) != 2 || !findings[0].Refused || !findings[1].Refused {
		t.Errorf("%+v %v", findings, err)
	}
	// The database's owner has an implicit membership.
	c.sql("postgres", "ALTER DATABASE other OWNER TO writer")
	if _, err := e.tryPG(e.pgDSN("other", "writer", time.Hour, "postgres other as writer")); err == nil {
		t.Error("an owner was admitted, who is a member of pg_database_owner")
	}
	c.sql("postgres", "ALTER DATABASE other OWNER TO postgres")
	// A membership that is given later counts from the next session on.
	e.pg(e.pgDSN("other", "writer", time.Hour, "postgres other as writer"))
	c.sql("postgres", "GRANT admin TO writer")
	if _, err := e.tryPG(e.pgDSN("other", "writer", time.Hour, "postgres other as writer")); err == nil {
		t.Error("a member was admitted")
	}
	c.sql("postgres", "REVOKE admin FROM writer")
	// A role that has set its own search path, and made what is to be found there, changes nothing.
	c.sql("orders", `GRANT CREATE ON DATABASE orders TO member; SET SESSION AUTHORIZATION member; CREATE SCHEMA trick;
		CREATE FUNCTION trick.pg_has_role(oid, oid, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
		CREATE FUNCTION trick.no(oid, oid) RETURNS bool LANGUAGE sql AS 'SELECT false';
		CREATE OPERATOR trick.<> (leftarg = oid, rightarg = oid, function = trick.no);
		CREATE VIEW trick.pg_roles AS SELECT oid, rolname, false AS rolsuper, false AS rolcreaterole, false AS rolreplication, false AS rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = 'member';
		ALTER ROLE member SET search_path = trick, pg_catalog`)
	if _, err := e.tryPG(e.pgDSN("orders", "member", time.Hour, "postgres orders as member")); err == nil {
		t.Error("a member that fools whoever asks was admitted")
	}
}

// testPGPinned: a database, or who answers in its place, that asks for the password otherwise does not get it.
func testPGPinned(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	for _, role := range []string{"md5user", "clearuser", "trustuser"} {
		_, err := e.tryPG(e.pgDSN("orders", role, time.Hour, "postgres orders as "+role))
		var said *pgconn.PgError
		if !errors.As(err, &said) || said.Code != "08004" || !strings.Contains(said.Message, "could not log in") {
			t.Errorf("%s: %v", role, err)
		}
		e.record(role, func(r logLine) bool { return r.Role == role && r.Reason == reasonLogin })
	}
	for _, want := range []string{"asks for MD5", "asks for the password in clear text", "did not ask for the password as it should"} {
		if !strings.Contains(e.logs.String(), want) {
			t.Errorf("no %q in the log", want)
		}
	}
	clear := c.proxyFor(t, func(s *Settings) { s.Postgres.Auth = "cleartext" })
	if got, err := askPG(t, clear.pg(clear.pgDSN("orders", "clearuser", time.Hour, "postgres orders as clearuser")), "SELECT current_user"); err != nil || got[0] != "clearuser" {
		t.Errorf("%v %v", got, err)
	}
	// Not the database: another certificate.
	wrong := newPKI(t)
	stranger := c.proxyFor(t, func(s *Settings) {
		s.Postgres.TLSRoots = s.AccessLog.Path + ".roots"
		writeFile(t, s.Postgres.TLSRoots, pemCerts(wrong.idRoot.cert))
	})
	if _, err := stranger.tryPG(stranger.pgDSN("orders", "readonly", time.Hour, readonlyPerm)); err == nil {
		t.Error("a database with an unknown certificate was logged in to")
	}
	named := c.proxyFor(t, func(s *Settings) { s.Postgres.TLSName = "other.test" })
	if _, err := named.tryPG(named.pgDSN("orders", "readonly", time.Hour, readonlyPerm)); err == nil {
		t.Error("a database with another's name was logged in to")
	}
}

// testPGAttacks: no statement and no start makes a session another role's.
func testPGAttacks(t *testing.T, c *cluster) {
	e := c.proxyFor(t, nil)
	dsn := e.pgDSN("orders", "readonly", time.Hour, readonlyPerm)
	same := func(t *testing.T, conn *pgconn.PgConn, after string) {
		t.Helper()
		if got, err := askPG(t, conn, "SELECT session_user, current_user, current_setting('is_superuser')"); err != nil || !slices.Equal(got, []string{"readonly", "readonly", "off"}) {
			t.Errorf("after %s: %v %v", after, got, err)
		}
	}
	conn := e.pg(dsn)
	for _, role := range []string{"admin", "writer", "super", "postgres", "member", "outer_group", "pg_read_all_data"} {
		for _, form := range []string{
			"SET ROLE %s", "SET ROLE '%s'", `SET ROLE "%s"`, "SET SESSION ROLE %s", "SET LOCAL ROLE %s", "BEGIN; SET LOCAL ROLE %s; SELECT current_user; COMMIT",
			"set\n/* x */ role %s", "SET role TO '%s'", "SELECT set_config('role', '%s', false)", "SELECT set_config('rOlE', '%s', true)",
			"SET SESSION AUTHORIZATION %s", "SET SESSION AUTHORIZATION '%s'", "SET LOCAL SESSION AUTHORIZATION %s", "SET session_authorization = '%s'",
			"SELECT set_config('session_authorization', '%s', false)",
			"DO $$ BEGIN SET ROLE %s; END $$", "DO $$ BEGIN EXECUTE 'SET ROLE ' || quote_ident('%s'); END $$",
			"DO $$ BEGIN PERFORM set_config('role', '%s', false); END $$",
			"UPDATE pg_settings SET setting = '%s' WHERE name = 'role'",
			"ALTER ROLE readonly SET role = '%s'", "ALTER ROLE readonly SET session_authorization = '%s'",
			"GRANT %s TO readonly", "ALTER ROLE readonly SUPERUSER; SET ROLE %s",
			"CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql SET role = '%s' AS 'SELECT current_user::text'; SELECT pg_temp.f()",
			"RESET ROLE; SET ROLE %s", "RESET SESSION AUTHORIZATION; SET SESSION AUTHORIZATION %s", "DISCARD ALL; SET ROLE %s",
		} {
			// In the simple protocol, and where it is one statement in the extended one, prepared and not.
			query := fmt.Sprintf(form, role)
			_, err := askPG(t, conn, query)
			if err == nil && !strings.HasPrefix(form, "UPDATE") && !strings.Contains(form, "ALTER ROLE readonly SET") {
				t.Errorf("%s succeeded", query)
			}
			_, _ = askPG(t, conn, "ROLLBACK")
			same(t, conn, query)
			if !strings.Contains(query, ";") {
				if res := conn.ExecParams(t.Context(), query, nil, nil, nil, nil).Read(); res.Err == nil && !strings.HasPrefix(form, "UPDATE") && !strings.Contains(form, "ALTER ROLE") {
					t.Errorf("%s succeeded in the extended protocol", query)
				}
				same(t, conn, "the extended "+query)
			}
		}
	}
	// A function that is SECURITY DEFINER does as its owner what its owner made it do, and no more: it cannot change the
	// role, and when it returns the session is what it was.
	if got, err := askPG(t, conn, "SELECT definer()"); err != nil || got[0] != "readonly as admin" {
		t.Errorf("%v %v", got, err)
	}
	same(t, conn, "definer()")
	if _, err := askPG(t, conn, "SELECT definer_set()"); err == nil {
		t.Error("a SECURITY DEFINER function set the role")
	}
	same(t, conn, "definer_set()")
	// dblink of a role that is none of the superusers' needs a password, which nobody here knows; the proxy's own login is no way in.
	for _, to := range []string{
		fmt.Sprintf("host=%s port=%d user=postgres dbname=orders", c.Dir, c.Port), fmt.Sprintf("host=%s port=%d user=postgres password=x dbname=orders", c.Dir, c.Port),
		fmt.Sprintf("host=localhost port=%d user=admin dbname=orders", c.Port),
	} {
		if _, err := askPG(t, conn, "SELECT * FROM dblink('"+to+"', 'SELECT current_user::text') AS t(u text)"); err == nil {
			t.Errorf("dblink to %s", to)
		}
	}
	if _, err := askPG(t, conn, "COPY (SELECT 1) TO PROGRAM 'id'"); err == nil {
		t.Error("a program ran")
	}
	same(t, conn, "dblink")

	// What can be said at the start.
	for _, extra := range []string{
		"options='-c role=admin'", "options='-crole=admin'", "options='--role=admin'", "options='-c session_authorization=admin'", "options=''' '",
		"replication=true", "replication=database", "replication=off", "role=admin", "session_authorization=admin", "ROLE=admin", "Options=-crole=admin",
		"log_statement=none", "session_preload_libraries=x", "row_security=off", "lc_messages=C", "user=admin", "dbname=other",
	} {
		cfg, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		key, value, _ := strings.Cut(extra, "=")
		switch key {
		case "user":
			cfg.User = value
		case "dbname":
			cfg.Database = value
		default:
			cfg.RuntimeParams[key] = strings.Trim(value, "'")
		}
		if strings.Trim(value, "' ") == "" {
			cfg.RuntimeParams[key] = "-c role=admin"
		}
		conn, err := pgconn.ConnectConfig(t.Context(), cfg)
		var said *pgconn.PgError
		if !errors.As(err, &said) || said.Severity != "FATAL" || !strings.HasPrefix(said.Message, "hallpass: ") {
			t.Errorf("%s: %v", extra, err)
		}
		if err == nil {
			_ = conn.Close(t.Context())
		}
	}
	e.record("options", func(r logLine) bool { return r.Decision == decisionRefuse && r.Reason == reasonNotAllowed })
	if got := psql(t, dsn+" options='-c role=admin'", "", "-c", "SELECT 1"); !strings.Contains(got, `start-up parameter "options" is not allowed`) {
		t.Errorf("psql: %s", got)
	}
	// A connection string within a database's name is a name.
	if _, err := e.tryPG(e.pgDSN("'host=/tmp user=postgres dbname=orders'", "readonly", time.Hour, readonlyPerm)); err == nil {
		t.Error("a connection string as a database's name")
	}
	for _, sub := range []string{"admin", "super", "postgres"} {
		if got := c.sessionsOf(sub); sub != "postgres" && got != "0" {
			t.Errorf("%s sessions as %s", got, sub)
		}
	}
	guessed(t, e, conn)
}

// guessed: keys that are nearly right, in the clear, cancel nothing, and are tried ten times a minute.
func guessed(t *testing.T, e *env, conn *pgconn.PgConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := askPG(t, conn, "SELECT pg_sleep(3)"); done <- err }()
	for i := range 40 {
		secret := slices.Clone(conn.SecretKey())
		secret[i%4] ^= byte(i + 1)
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = raw.Write(pgwire.Cancel{PID: conn.PID(), Secret: secret}.Append(nil))
		_ = raw.SetReadDeadline(time.Now().Add(patience))
		_, _ = raw.Read(make([]byte, 1))
		_ = raw.Close()
	}
	if err := <-done; err != nil {
		t.Errorf("a guess cancelled it: %v", err)
	}
	wrong, limited := 0, 0
	for _, r := range e.records() {
		if r.Kind == kindCancel && r.Reason == reasonWrongKey {
			wrong++
		}
		if r.Kind == kindCancel && r.Reason == reasonCancels {
			limited++
		}
	}
	if wrong > 20 || wrong+limited != 40 { // two minutes at most
		t.Errorf("%d wrong keys were tried, %d not", wrong, limited)
	}
}
