package proxy

import (
	"fmt"
	"strings"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// pgWish is what a session's client asked for, read one way.
type pgWish struct {
	db, role string
	minor    uint16             // of the protocol's version 3
	params   []pgwire.Parameter // that go on to the database; names in lower case
}

// startParameter says whether a client may set this at the start, by its name in lower case. All of these can be set later on
// by SQL, too; they are here for the programs that send them. What is not here is refused: `options` is a command
// line of its own, `replication` another protocol, and `role` and `session_authorization` are another's name.
func startParameter(name string) bool {
	switch name {
	case "application_name", "bytea_output", "client_encoding", "client_min_messages", "datestyle", "default_transaction_isolation",
		"default_transaction_read_only", "extra_float_digits", "geqo", "idle_in_transaction_session_timeout", "intervalstyle",
		"lock_timeout", "search_path", "standard_conforming_strings", "statement_timeout", "timezone":
		return true
	default:
		return false
	}
}

const maxParameter = 1024 // bytes of a value

// readWish reads what a client asks for. The refusal is nil if it may be asked for at all.
func readWish(s pgwire.Startup) (pgWish, *pgwire.Fatal) {
	w := pgWish{minor: s.Minor}
	var refused *pgwire.Fatal // the first
	refuse := func(f pgwire.Fatal) {
		if refused == nil {
			refused = &f
		}
	}
	for _, p := range s.Params {
		switch name := strings.ToLower(p.Name); {
		case p.Name == "user":
			w.role = p.Value
		case p.Name == "database":
			w.db = p.Value
		case strings.HasPrefix(p.Name, "_pq_."): // there are none; Welcome says so
		case !startParameter(name):
			refuse(pgwire.Fatal{
				Code: pgwire.CodeNotSupported, Message: fmt.Sprintf("hallpass: the start-up parameter %q is not allowed", p.Name),
				Hint: "leave it out (PGOPTIONS, the options of the connection string), and SET what you need after connecting",
			})
		case len(p.Value) > maxParameter:
			refuse(pgwire.Fatal{
				Code: pgwire.CodeNotSupported, Message: fmt.Sprintf("hallpass: the start-up parameter %q has over %d bytes", p.Name, maxParameter),
			})
		default:
			w.params = append(w.params, pgwire.Parameter{Name: name, Value: p.Value})
		}
	}
	if w.role == "" {
		refuse(pgwire.Fatal{Code: pgwire.CodeInvalidAuthorization, Message: "hallpass: the start-up packet names no user"})
	}
	if w.db == "" {
		w.db = w.role // as PostgreSQL has it
	}
	return w, refused
}

// startup is what the database is asked for. The database and the role are those that the grant was asked about.
func (w pgWish) startup() pgwire.Startup {
	return pgwire.Startup{Params: append([]pgwire.Parameter{{Name: "user", Value: w.role}, {Name: "database", Value: w.db}}, w.params...)}
}
