//go:build integration

package proxy

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hallpass/hallpass/internal/realpg"
)

// cluster is a real PostgreSQL, of the test's own.
type cluster struct {
	*realpg.Server
	t   testing.TB
	pki *pki
}

// startCluster makes and starts one.
func startCluster(t testing.TB) *cluster {
	t.Helper()
	p := newPKI(t)
	cert := p.mint(leafSpec{
		uris: []string{"spiffe://acme.test/service/db"}, dns: []string{"localhost"}, issuer: p.idIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return &cluster{t: t, pki: p, Server: realpg.Start(t, realpg.Options{
		Cert: pemChain(cert), Key: pemKey(t, cert.PrivateKey), Roots: pemCerts(p.idRoot.cert),
		HBA: hba, Ident: "proxy \"\" certuser\n",
	})}
}

const hba = `local all peeruser trust
hostnossl all all 127.0.0.1/32 reject
hostssl all md5user 127.0.0.1/32 md5
hostssl all clearuser 127.0.0.1/32 password
hostssl all trustuser 127.0.0.1/32 trust
hostssl all all 127.0.0.1/32 scram-sha-256
`

// sql runs statements as the superuser, on the socket, and returns the first row of the last of them.
func (c *cluster) sql(db, text string) []string {
	c.t.Helper()
	got, err := c.Query(c.t.Context(), db, text)
	if err != nil {
		c.t.Fatalf("%s: %v", text, err)
	}
	return got
}

const setup = `
CREATE ROLE readonly LOGIN PASSWORD 'pw-readonly';
CREATE ROLE writer LOGIN PASSWORD 'pw-writer';
CREATE ROLE admin LOGIN PASSWORD 'pw-admin';
CREATE ROLE super SUPERUSER LOGIN PASSWORD 'pw-super';
CREATE ROLE creator CREATEROLE LOGIN PASSWORD 'pw-creator';
CREATE ROLE repl REPLICATION LOGIN PASSWORD 'pw-repl';
CREATE ROLE bypass BYPASSRLS LOGIN PASSWORD 'pw-bypass';
CREATE ROLE member LOGIN PASSWORD 'pw-member';
CREATE ROLE outer_group; GRANT admin TO outer_group; GRANT outer_group TO member;
CREATE ROLE noinherit LOGIN NOINHERIT PASSWORD 'pw-noinherit'; GRANT writer TO noinherit;
CREATE ROLE peeruser LOGIN;
CREATE ROLE trustuser LOGIN;
CREATE ROLE clearuser LOGIN PASSWORD 'pw-clearuser';
SET password_encryption = 'md5'; CREATE ROLE md5user LOGIN PASSWORD 'pw-md5user'; RESET password_encryption;
CREATE DATABASE orders;
CREATE DATABASE other;
`

const setupOrders = `
CREATE TABLE t (id int, name text);
INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 1000) g;
GRANT SELECT, INSERT ON t TO readonly, writer, peeruser;
CREATE TABLE secret (x text); INSERT INTO secret VALUES ('hidden');
CREATE FUNCTION definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT session_user || ' as ' || current_user $$;
CREATE FUNCTION definer_set() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE 'SET ROLE admin'; END $$;
ALTER FUNCTION definer() OWNER TO admin; ALTER FUNCTION definer_set() OWNER TO admin;
CREATE EXTENSION dblink;
`

// proxyFor starts a proxy before the cluster.
func (c *cluster) proxyFor(t testing.TB, edit func(*Settings)) *env {
	t.Helper()
	return start(t, options{pki: c.pki, upstream: fmt.Sprintf("postgres://localhost:%d", c.Port), edit: func(s *Settings) {
		dir := filepath.Dir(s.Certificate)
		var lines strings.Builder
		for _, role := range []string{"readonly", "writer", "admin", "super", "creator", "repl", "bypass", "member", "noinherit", "md5user", "clearuser", "trustuser", "peeruser"} {
			fmt.Fprintf(&lines, "localhost:%d:*:%s:pw-%s\n", c.Port, role, role)
		}
		writeFile(t, filepath.Join(dir, "pgpass"), []byte(lines.String()))
		s.Protocol, s.Hosts = "postgres", nil
		s.Postgres = PostgresSettings{PasswordFile: filepath.Join(dir, "pgpass"), TLSRoots: c.Roots()}
		if edit != nil {
			edit(s)
		}
	}})
}

// pgDir writes what programs take, for a grant, and gives the connection string over it.
func (e *env) pgDSN(db, role string, ttl time.Duration, perms ...string) string {
	e.t.Helper()
	return e.pgDSNOf(db, role, newGrantID(e.t), ttl, perms...)
}

func (e *env) pgDSNOf(db, role, id string, ttl time.Duration, perms ...string) string {
	e.t.Helper()
	dir := e.t.TempDir()
	writePair(e.t, dir, e.pki.grantWithID(id, ttl, perms...))
	return e.pgDSNIn(dir, db, role)
}

func (e *env) pgDSNIn(dir, db, role string) string {
	e.t.Helper()
	writeFile(e.t, filepath.Join(dir, "ca.pem"), pemCerts(e.pki.idRoot.cert))
	_, port, err := net.SplitHostPort(e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	return fmt.Sprintf("host=localhost port=%s dbname=%s user=%s sslmode=verify-full sslcert=%s/cert.pem sslkey=%s/key.pem sslrootcert=%s/ca.pem",
		port, db, role, dir, dir, dir)
}

// pg opens a session through the proxy.
func (e *env) pg(dsn string) *pgconn.PgConn {
	e.t.Helper()
	conn, err := e.tryPG(dsn)
	if err != nil {
		e.t.Fatal(err)
	}
	return conn
}

func (e *env) tryPG(dsn string) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(e.t.Context(), 2*patience)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	if err == nil {
		e.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

// askPG runs statements and returns the first row of the last that has one.
func askPG(t testing.TB, conn *pgconn.PgConn, sql string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	return realpg.Row(results), err
}
