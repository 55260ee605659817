package console_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestEscalatedPages: whoever a request is escalated to is offered to decide on it from then
// on, and is told when until then; the page says of both groups who could.
func TestEscalatedPages(t *testing.T) {
	b := newBed(t)
	at := time.Date(2026, 3, 4, 11, 15, 0, 0, time.UTC)
	escalating := func(id string, since *time.Time) api.Request {
		return pending(func(r *api.Request) {
			r.ID, r.Require = id, []api.Requirement{{Group: "security", Approvals: 1}}
			r.Escalation = &api.Escalation{
				After: api.Duration(15 * time.Minute), At: &at, EscalatedAt: since,
				Require: []api.Requirement{{Group: "owners", Approvals: 1}},
			}
		})
	}
	b.requests = []api.Request{escalating("waits", nil), escalating("escalated", &at)}
	who := b.signIn(t)
	wants(t, who.get("/requests/waits"), http.StatusOK, "You may decide on it from 11:15:00 UTC on, if nobody has by then. Until then it is for security.",
		"these may decide in place of the above", "or owners")
	wants(t, who.get("/requests/escalated"), http.StatusOK, "since nobody had decided: these may in place of the above", `<button class="primary" type="submit">Approve</button>`)
	queue := who.get("/").body
	mine, others, found := strings.Cut(queue, "Others that you may see")
	if !found || !strings.Contains(mine, `data-id="escalated"`) || strings.Contains(mine, `data-id="waits"`) || !strings.Contains(others, `data-id="waits"`) {
		t.Errorf("the queue is\n%s", queue)
	}
	for part, words := range map[string]string{mine: "<strong>Escalated</strong>", others: "Undecided, escalated"} {
		if !strings.Contains(part, words) || !strings.Contains(part, "or 1 of owners.") {
			t.Errorf("the queue does not say %q:\n%s", words, part)
		}
	}
}
