package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// errRole is returned when a role could become another one, or is another than was logged in as.
var errRole = errors.New("the role cannot be used")

// roleFacts is what a database says of a session and its role.
type roleFacts struct {
	session, current, database string
	attributes                 []string // those by which a role can become another
	memberships                string
	pid, started               string // of the session's backend
}

// roleQuery asks for roleFacts. A role may have set its own search_path, and have made functions and operators for it to
// find: nothing is looked up but in pg_catalog.
const roleQuery = `BEGIN READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp;
SELECT session_user::text, current_user::text, current_database()::text,
  concat_ws(', ', CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
    CASE WHEN r.rolreplication THEN 'REPLICATION' END, CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END),
  CASE WHEN r.rolsuper THEN '' ELSE (SELECT string_agg(quote_ident(m.rolname), ', ' ORDER BY m.rolname)
    FROM pg_roles m WHERE m.oid <> r.oid AND pg_has_role(r.oid, m.oid, 'MEMBER')) END,
  pg_backend_pid()::text,
  (SELECT (extract(epoch FROM a.backend_start) * 1000000)::bigint::text FROM pg_stat_activity a WHERE a.pid = pg_backend_pid())
FROM pg_roles r WHERE r.rolname = session_user; COMMIT`

// askRole asks the session that was just begun who it is.
func askRole(ctx context.Context, s *pgwire.Server) (roleFacts, error) {
	rows, err := s.Query(ctx, roleQuery)
	if err != nil {
		return roleFacts{}, err
	}
	if len(rows) != 1 || len(rows[0]) != 7 || !digits(rows[0][5]) || !digits(rows[0][6]) {
		return roleFacts{}, fmt.Errorf("%w: the database does not know it", errRole)
	}
	v := rows[0]
	f := roleFacts{session: v[0], current: v[1], database: v[2], memberships: v[4], pid: v[5], started: v[6]}
	if v[3] != "" {
		f.attributes = strings.Split(v[3], ", ")
	}
	return f, nil
}

// check refuses a role that can become another: what would be approved as one would open what the other may do. The error is
// errRole and says by what.
func (f roleFacts) check(db, role string) error {
	var why []string
	if f.session != role || f.current != role || f.database != db {
		why = append(why, fmt.Sprintf("a session as %s in %s is one as %s, acting as %s, in %s", role, db, f.session, f.current, f.database))
	}
	if len(f.attributes) > 0 {
		why = append(why, "it has "+strings.Join(f.attributes, ", "))
	}
	if f.memberships != "" {
		why = append(why, "it is a member of "+f.memberships)
	}
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", errRole, strings.Join(why, "; "))
}

// endQuery ends a backend of the same role. It is by its start told from another that was given its process id since.
func (f roleFacts) endQuery() string {
	return fmt.Sprintf(`BEGIN READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp;
SELECT pg_terminate_backend(a.pid)::text FROM pg_stat_activity a
WHERE a.pid = %s AND (extract(epoch FROM a.backend_start) * 1000000)::bigint = %s; COMMIT`, f.pid, f.started)
}

// digits says whether s is a number as the two of endQuery are.
func digits(s string) bool { return s != "" && len(s) < 20 && strings.Trim(s, "0123456789") == "" }
