package grant

import (
	"errors"
	"strings"
	"testing"
)

// TestPostgresPermission: made of names, read as text and taken apart it is the same, and no other names make one.
func TestPostgresPermission(t *testing.T) {
	for _, row := range []struct{ db, role, text string }{
		{"orders", "readonly", "postgres orders as readonly"},
		{"my db", "as", `postgres "my db" as "as"`},
		{`q"`, "Ä", `postgres "q""" as "Ä"`},
		{"a'b", "..", `postgres "a'b" as ".."`},
		{"\u202e", "\x01", `postgres U&"\202E" as U&"\0001"`},
	} {
		p, err := PostgresPermission(row.db, row.role)
		if err != nil || p.String() != row.text {
			t.Errorf("%+v: %s %v", row, p, err)
		}
		if read, err := ParsePermission(row.text); err != nil || read != p {
			t.Errorf("%+v: %s %v", row, read, err)
		}
		if db, role, ok := p.Postgres(); !ok || db != row.db || role != row.role {
			t.Errorf("%+v: %s %s", row, db, role)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", 64), "a\x00b", "\xff"} {
		for _, names := range [][2]string{{bad, "r"}, {"d", bad}} {
			if p, err := PostgresPermission(names[0], names[1]); !errors.Is(err, ErrPermission) || !p.IsZero() {
				t.Errorf("%q: %s %v", names, p, err)
			}
		}
	}
	if _, _, ok := TCPPermission().Postgres(); ok {
		t.Error("tcp has a database")
	}
	if _, _, ok := (Permission{}).Postgres(); ok {
		t.Error("nothing has a database")
	}
}
