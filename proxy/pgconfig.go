package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// PostgresSettings are those of a service of protocol postgres.
type PostgresSettings struct {
	Auth         string `yaml:"auth" doc:"how the proxy logs in as a role: scram (default), cleartext, certificate or peer"`
	PasswordFile string `yaml:"password_file" doc:"passwords of the roles, as in .pgpass, mode 0600; for scram and cleartext"`
	TLS          string `yaml:"tls" doc:"to the database: verify-full (default over TCP) or disable (loopback only)"`
	TLSRoots     string `yaml:"tls_roots" doc:"roots of the database's certificate"`
	TLSName      string `yaml:"tls_name" doc:"name in the database's certificate (default: the upstream's host)"`
	Certificate  string `yaml:"certificate" doc:"the proxy's certificate chain for the database"`
	Key          string `yaml:"key" doc:"its private key"`

	QueryLog        string `yaml:"query_log" doc:"statements in the access log: off (default), fingerprint or text"`
	QueryLogBytes   int    `yaml:"query_log_bytes" doc:"of a statement's text that is recorded (default 2048)"`
	MaxMessageBytes int    `yaml:"max_message_bytes" doc:"length of a message (default 1073741822, PostgreSQL's own)"`
	Cancel          string `yaml:"cancel" doc:"who may cancel a statement by its key: any (default), as psql before 17 asks without TLS, or tls"`
}

// queryLog says what of statements is recorded.
type queryLog uint8

const (
	queryLogOff queryLog = iota
	queryLogFingerprint
	queryLogText
)

// pgConfig is PostgresSettings, checked.
type pgConfig struct {
	auth         pgwire.Auth
	passwordFile string
	// host and port are what lines of the password file name.
	host, port string
	verify     bool // TLS to the database
	tlsName    string
	tlsRoots   string
	cert, key  string

	queries    queryLog
	queryBytes int
	maxMessage int
	tlsCancel  bool // a key counts only in TLS
}

var errPostgresUpstream = errors.New("want postgres://HOST:PORT or unix:///FOLDER of the database's socket, as protocol is postgres")

// parsePostgresTarget reads the upstream of a postgres service. Like libpq, it takes a socket's folder.
func parsePostgresTarget(text string) (target, error) {
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return target{}, errPostgresUpstream
	}
	if u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path) {
		path := filepath.Clean(u.Path)
		if !strings.HasPrefix(filepath.Base(path), ".s.PGSQL.") {
			path = filepath.Join(path, ".s.PGSQL.5432")
		}
		return target{network: "unix", address: path}, nil
	}
	if u.Scheme != "postgres" || u.Path != "" || u.Hostname() == "" || u.Port() == "" {
		return target{}, errPostgresUpstream
	}
	return target{network: "tcp", address: u.Host}, nil
}

func (c *config) readPostgres(s *Settings) error {
	if c.pg == nil {
		if s.Postgres != (PostgresSettings{}) {
			return s.mistake("postgres", "is for protocol: postgres")
		}
		return nil
	}
	ps, pg := s.Postgres, c.pg
	pg.passwordFile, pg.tlsName, pg.tlsRoots, pg.cert, pg.key = ps.PasswordFile, ps.TLSName, ps.TLSRoots, ps.Certificate, ps.Key
	var errs []error
	if len(s.Hosts) > 0 {
		errs = append(errs, s.mistake("hosts", "is for protocol: http"))
	}
	if s.UpstreamProxyProtocol != "" {
		errs = append(errs, s.mistake("upstream_proxy_protocol", "is not for postgres, which does not read it"))
	}
	unix := c.upstream.network == "unix"
	if unix {
		pg.host, pg.port = filepath.Dir(c.upstream.address), strings.TrimPrefix(filepath.Base(c.upstream.address), ".s.PGSQL.")
	} else if c.upstream.address != "" {
		var err error
		if pg.host, pg.port, err = net.SplitHostPort(c.upstream.address); err != nil {
			errs = append(errs, s.mistake("upstream", "%s", errPostgresUpstream.Error()))
		}
	}
	errs = append(errs, pg.readTLS(s, unix), pg.readAuth(s, unix), pg.readRest(s))
	return errors.Join(errs...)
}

func (pg *pgConfig) readTLS(s *Settings, unix bool) error {
	ps := s.Postgres
	switch {
	case unix && ps.TLS != "" && ps.TLS != "disable":
		return s.mistake("postgres.tls", "%q: there is no TLS on a Unix socket", ps.TLS)
	case unix:
	case ps.TLS == "" || ps.TLS == "verify-full":
		pg.verify = true
	case ps.TLS != "disable":
		return s.mistake("postgres.tls", "%q is neither verify-full nor disable", ps.TLS)
	case pg.host != "" && !isLoopback(pg.host):
		return s.mistake("postgres.tls", "disable: %s is not loopback, and whoever carries the bytes could read and change them", pg.host)
	}
	if pg.verify && pg.tlsRoots == "" {
		return s.mistake("postgres.tls_roots", "is missing; name the roots of the database's certificate")
	}
	if !pg.verify && (ps.TLSRoots != "" || ps.TLSName != "" || ps.Certificate != "") {
		return s.mistake("postgres.tls", "is off, so that tls_roots, tls_name and certificate would do nothing")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (pg *pgConfig) readAuth(s *Settings, unix bool) error {
	ps := s.Postgres
	var errs []error
	passwords := false
	switch ps.Auth {
	case "", "scram":
		pg.auth, passwords = pgwire.AuthSCRAM, true
	case "cleartext":
		pg.auth, passwords = pgwire.AuthCleartext, true
		if !unix && !pg.verify {
			errs = append(errs, s.mistake("postgres.auth", "cleartext needs tls: verify-full"))
		}
	case "certificate":
		pg.auth = pgwire.AuthNone
		if ps.Certificate == "" {
			errs = append(errs, s.mistake("postgres.certificate", "is missing, and auth is certificate"))
		}
	case "peer":
		pg.auth = pgwire.AuthNone
		if !unix {
			errs = append(errs, s.mistake("postgres.auth", "peer needs a Unix socket as upstream"))
		}
	default:
		errs = append(errs, s.mistake("postgres.auth", "%q is none of scram, cleartext, certificate and peer", ps.Auth))
	}
	switch {
	case passwords && ps.PasswordFile == "":
		errs = append(errs, s.mistake("postgres.password_file", "is missing; write HOST:PORT:DATABASE:ROLE:PASSWORD lines into a file of mode 0600"))
	case !passwords && ps.PasswordFile != "":
		errs = append(errs, s.mistake("postgres.password_file", "is not used with auth: %s", ps.Auth))
	}
	if (ps.Certificate == "") != (ps.Key == "") {
		errs = append(errs, s.mistake("postgres.key", "certificate and key come together"))
	}
	return errors.Join(errs...)
}

func (pg *pgConfig) readRest(s *Settings) error {
	ps := s.Postgres
	var errs []error
	switch ps.QueryLog {
	case "", "off":
	case "fingerprint":
		pg.queries = queryLogFingerprint
	case "text":
		pg.queries = queryLogText
	default:
		errs = append(errs, s.mistake("postgres.query_log", "%q is none of off, fingerprint and text", ps.QueryLog))
	}
	for _, n := range []struct {
		key                 string
		set, def, low, high int
		to                  *int
	}{
		{"query_log_bytes", ps.QueryLogBytes, 2048, 16, pgwire.MaxPeek / 2, &pg.queryBytes},
		{"max_message_bytes", ps.MaxMessageBytes, pgwire.MaxMessage, 64 << 10, pgwire.MaxMessage, &pg.maxMessage},
	} {
		switch {
		case n.set == 0:
			*n.to = n.def
		case n.set < n.low || n.set > n.high:
			errs = append(errs, s.mistake("postgres."+n.key, "%d is not within %d and %d", n.set, n.low, n.high))
		default:
			*n.to = n.set
		}
	}
	switch ps.Cancel {
	case "", "any":
	case "tls":
		pg.tlsCancel = true
	default:
		errs = append(errs, s.mistake("postgres.cancel", "%q is neither any nor tls", ps.Cancel))
	}
	return errors.Join(errs...)
}

// readable reads the files that logging in needs, so that a mistake in them shows before the first session.
func (pg *pgConfig) readable() error {
	if pg == nil {
		return nil // another protocol
	}
	if pg.passwordFile != "" {
		if _, err := readPasswords(pg.passwordFile); err != nil {
			return err
		}
	}
	_, err := pg.tlsConfig()
	return err
}

// paths are those of the settings' files.
func (s *PostgresSettings) paths() []*string {
	return []*string{&s.PasswordFile, &s.TLSRoots, &s.Certificate, &s.Key}
}

// tlsConfig reads the files of the TLS to the database; nil is none. They are read for each login: few as those
// are, a renewed certificate needs no restart.
func (pg *pgConfig) tlsConfig() (*tls.Config, error) {
	if !pg.verify {
		return nil, nil //nolint:nilnil // no TLS is not an error
	}
	data, err := os.ReadFile(pg.tlsRoots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%w: %s: holds no certificate", ErrMaterial, pg.tlsRoots)
	}
	name := pg.tlsName
	if name == "" {
		name = pg.host
	}
	cfg := &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12, NextProtos: []string{pgALPN}}
	if pg.cert != "" {
		cert, err := tls.LoadX509KeyPair(pg.cert, pg.key)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrMaterial, pg.cert, err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// credentials are those of a role, from the files as they are now.
func (pg *pgConfig) credentials(db, role string) (pgwire.Credentials, error) {
	c := pgwire.Credentials{Auth: pg.auth}
	if pg.passwordFile == "" {
		return c, nil
	}
	entries, err := readPasswords(pg.passwordFile)
	if err != nil {
		return c, err
	}
	for _, e := range entries {
		if e.matches(pg, db, role) {
			c.Password = e.password
			return c, nil
		}
	}
	return c, fmt.Errorf("%w: %s: no password for role %q in database %q at %s:%s", ErrMaterial, pg.passwordFile, role, db, pg.host, pg.port)
}
