package console

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/hallpass/hallpass/approval/api"
)

// trouble is what the problem page and the alert of a page say.
type trouble struct {
	What, Next string
	// RequestID is the id under which the node's log has more; "" for none.
	RequestID string
}

// problem is the page for an error.
func (c *Console) problem(ctx context.Context, err error) view {
	return troublePage(c.told(ctx, err))
}

// troublePage is a page that says nothing else.
func troublePage(status int, t trouble) view {
	return view{page: "problem", title: http.StatusText(status), status: status, body: t}
}

// told is the one place where the API's errors become what a person reads.
func (c *Console) told(ctx context.Context, err error) (status int, t trouble) {
	if errors.Is(err, api.ErrUnauthenticated) {
		return http.StatusForbidden, trouble{
			What: "The cluster does not accept your identity: its certificate has expired, or was never this cluster's.",
			Next: "Get a new one into the same folder, and reload: the console reads it again.",
		}
	}
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Status < 400 || p.Status > 599 {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the cluster does not answer", slog.String("error", err.Error()))
		return http.StatusBadGateway, trouble{What: "No control node answers.", Next: "Reload in a moment. What hallpass console prints says which nodes it tried."}
	}
	t = trouble{What: sentence(p.Title, p.Detail), Next: sentence(p.Next), RequestID: p.RequestID}
	if errors.Is(err, api.ErrAmbiguous) {
		t.Next = lookAgain
	}
	return p.Status, t
}

// uncertain reports whether what a form asked for may have been done in spite of
// an error: a node may have committed it, and its answer been lost, before another
// one gave the error that came of trying again.
func uncertain(err error) bool {
	for _, no := range []error{api.ErrStale, api.ErrDenied, api.ErrInvalid, api.ErrConflict, api.ErrExpired} {
		if errors.Is(err, no) {
			return false
		}
	}
	return true
}

const lookAgain = "It may have been done, or not: look again before you repeat it."

// undone is told for a form.
func (c *Console) undone(ctx context.Context, err error) (status int, t trouble) {
	if status, t = c.told(ctx, err); uncertain(err) {
		t.Next = lookAgain
	}
	return status, t
}

// sentence joins texts with colons and begins with a capital.
func sentence(parts ...string) string {
	var out string
	for _, p := range parts {
		switch {
		case p == "":
		case out == "":
			out = p
		default:
			out += ": " + p
		}
	}
	if out != "" && out[0] >= 'a' && out[0] <= 'z' {
		out = string(out[0]-'a'+'A') + out[1:]
	}
	return out
}
