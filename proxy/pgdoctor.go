package proxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy/pgwire"
)

// PostgresRole is a role in a database, as a grant names them.
type PostgresRole struct{ Database, Role string }

// ParsePostgresRole reads a role as grants say it: postgres DB as ROLE. The error is the grant package's.
func ParsePostgresRole(text string) (PostgresRole, error) {
	p, err := grant.ParsePermission(text)
	if err != nil {
		return PostgresRole{}, err
	}
	db, role, ok := p.Postgres()
	if !ok {
		return PostgresRole{}, fmt.Errorf("%w: %s: write postgres DB as ROLE", grant.ErrPermission, text)
	}
	return PostgresRole{db, role}, nil
}

// PostgresFinding is what CheckPostgres has to say of a role in a database, or, with neither, of the settings.
type PostgresFinding struct {
	Database string `json:"database,omitempty"`
	Role     string `json:"role,omitempty"`
	Refused  bool   `json:"refused"` // the proxy opens no session as this role there
	Text     string `json:"text"`
}

// ErrNoRoles is returned when nothing says which roles to look at.
var ErrNoRoles = errors.New("no role to look at: the password file names none with its database")

// CheckPostgres logs in as each role, as a session would, and says which of them the proxy would refuse and why, and what
// else its owner should know. Without roles it looks at those that the password file names along with a database. The
// settings have to be of a postgres service; the error is theirs, or ErrNoRoles.
func CheckPostgres(ctx context.Context, s Settings, roles []PostgresRole) ([]PostgresFinding, error) {
	cfg, err := newConfig(Config{Settings: s})
	if err != nil {
		return nil, err
	}
	if cfg.pg == nil {
		return nil, fmt.Errorf("%w: protocol is not postgres", ErrSettings)
	}
	if err := cfg.pg.readable(); err != nil {
		return nil, err
	}
	if len(roles) == 0 {
		if roles, err = cfg.pg.namedRoles(); err != nil {
			return nil, err
		}
	}
	if len(roles) == 0 {
		return nil, ErrNoRoles
	}
	p := &Proxy{cfg: cfg, up: newUpstream(cfg), core: &core{log: cfg.log}}
	found := cfg.pg.remarks()
	for _, r := range roles {
		found = append(found, p.checkRole(ctx, r)...)
	}
	return found, nil
}

// namedRoles are those of the password file whose database is named, too.
func (pg *pgConfig) namedRoles() ([]PostgresRole, error) {
	if pg.passwordFile == "" {
		return nil, nil
	}
	entries, err := readPasswords(pg.passwordFile)
	if err != nil {
		return nil, err
	}
	var roles []PostgresRole
	for _, e := range entries {
		if e.db != "*" && e.role != "*" && e.matches(pg, e.db, e.role) {
			roles = append(roles, PostgresRole{e.db, e.role})
		}
	}
	return roles, nil
}

// remarks are on the settings alone.
func (pg *pgConfig) remarks() []PostgresFinding {
	var found []PostgresFinding
	if pg.auth == pgwire.AuthCleartext {
		found = append(found, PostgresFinding{Text: "auth: cleartext gives the passwords to the database, and to whoever takes its place"})
	}
	if pg.queries == queryLogText {
		found = append(found, PostgresFinding{Text: "query_log: text records what is in statements, secrets included"})
	}
	return found
}

// checkRole is what there is to say of one role.
func (p *Proxy) checkRole(ctx context.Context, r PostgresRole) []PostgresFinding {
	refused := func(err error) []PostgresFinding {
		return []PostgresFinding{{r.Database, r.Role, true, err.Error()}}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*p.cfg.limits.dialTO)
	defer cancel()
	t, err := p.pgTarget()
	if err != nil {
		return refused(err)
	}
	server, _, err := p.pgLogin(ctx, t, r.Database, r.Role, pgWish{db: r.Database, role: r.Role}.startup())
	if err != nil {
		return refused(err)
	}
	defer func() { _ = server.Conn.Close() }() // it was only asked
	rows, err := server.Query(ctx, beyondQuery)
	if err != nil {
		return refused(err)
	}
	found := []PostgresFinding{{r.Database, r.Role, false, "the role is what it seems: it has no other to become"}}
	for _, row := range rows {
		if len(row) == 1 {
			found = append(found, PostgresFinding{r.Database, r.Role, false, row[0]})
		}
	}
	if p.cfg.pg.auth != pgwire.AuthNone {
		found = append(found, PostgresFinding{r.Database, r.Role, false, "it may change its own password (ALTER ROLE … PASSWORD), as any role may: " +
			"let pg_hba.conf admit it from this proxy alone, or use auth: certificate"})
	}
	return found
}

// beyondQuery asks for what a role can do beyond its own rights, without becoming another: not to be refused, since
// somebody meant it to be so, but to be known.
const beyondQuery = `BEGIN READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp;
SELECT concat('it may call ', f.oid::regprocedure::text, ' as ', quote_ident(o.rolname), ', whose rights the function has (SECURITY DEFINER)')
FROM pg_proc f JOIN pg_roles o ON o.oid = f.proowner
WHERE f.prosecdef AND o.rolname <> session_user AND has_function_privilege(f.oid, 'EXECUTE') AND has_schema_privilege(f.pronamespace, 'USAGE')
ORDER BY 1 LIMIT 50;
SELECT concat('it may write functions in ', quote_ident(l.lanname), ', which is not trusted: they do what the database''s own user may')
FROM pg_language l WHERE l.lanispl AND NOT l.lanpltrusted AND has_language_privilege(l.oid, 'USAGE') ORDER BY 1;
SELECT concat('it may use the foreign server ', quote_ident(s.srvname), ' as somebody whose password is kept there')
FROM pg_foreign_server s WHERE has_server_privilege(s.oid, 'USAGE')
AND EXISTS (SELECT 1 FROM pg_user_mappings m WHERE m.srvid = s.oid AND (m.umuser = 0 OR m.usename = session_user)) ORDER BY 1;
SELECT 'it may make databases (CREATEDB)' FROM pg_roles r WHERE r.rolname = session_user AND r.rolcreatedb; COMMIT`
