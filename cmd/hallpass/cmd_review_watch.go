package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newReviewWatch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Show what waits for your decision, and go on to show what comes, until Ctrl-C",
		Long: `Show the requests that wait for your decision, then each new one as it arrives,
and what becomes of those that were shown, until Ctrl-C. It goes on over a lost
connection and a change of leaders, and shows nothing twice.

With -o json each line is a document; with -o yaml documents follow each other.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				err := a.watchReviews(ctx, c)
				if ctx.Err() != nil {
					return nil //nolint:nilerr // it was told to end
				}
				return err
			})
		},
	}
}

// reviewEvent is a line of `review watch`.
type reviewEvent struct {
	// Event is "waits" for a request that can be decided on, "changed" for one of them that was
	// narrowed, and else the state that it came to.
	Event   string      `json:"event"`
	Request api.Request `json:"request"`
}

// reviewWatch is a run of `review watch`.
type reviewWatch struct {
	a     *app
	c     *api.Client
	me    api.WhoAmI
	shown map[string]string // hashes by id, of those that wait
}

func (a *app) watchReviews(ctx context.Context, c *api.Client) error {
	w := &reviewWatch{a: a, c: c, shown: make(map[string]string)}
	var err error
	if w.me, err = c.WhoAmI(ctx); err != nil {
		return err
	}
	if w.me.Person == "" {
		return errors.New("your identity belongs to no person, and only persons decide")
	}
	// Where the log ends before anything is listed: what happens meanwhile is heard of.
	log, err := c.AuditEntries(ctx, math.MaxInt64, 1)
	if err != nil {
		return err
	}
	f := api.Filter{State: api.RequestPending}
	for {
		list, err := c.Requests(ctx, f)
		if err != nil {
			return err
		}
		for _, r := range slices.Backward(list.Requests) { // the oldest first, as the new ones follow
			if err := w.saw(r); err != nil {
				return err
			}
		}
		if list.Next == "" {
			break
		}
		f.Cursor = list.Next
	}
	return c.WatchEvents(ctx, log.Size, func(e api.Event) error { return w.heard(ctx, e) })
}

// heard looks at what an event is about. Most are about what is nobody's to decide here.
func (w *reviewWatch) heard(ctx context.Context, e api.Event) error {
	if _, waits := w.shown[e.Object]; !waits && e.Kind != "request.create" && e.Kind != "request.escalate" {
		return nil
	}
	r, err := w.c.Request(ctx, e.Object)
	if errors.Is(err, api.ErrNotFound) {
		return nil // not one that this person may see
	}
	if err != nil {
		return err
	}
	return w.saw(r)
}

// saw shows a request, if there is something new to say of it.
func (w *reviewWatch) saw(r api.Request) error {
	hash, waits := w.shown[r.ID]
	switch {
	case r.State != api.RequestPending && !waits:
		return nil
	case r.State != api.RequestPending:
		delete(w.shown, r.ID)
		return w.tell(reviewEvent{r.State, r})
	case !w.mayDecide(r), hash == r.Hash:
		return nil
	}
	w.shown[r.ID] = r.Hash
	event := "waits"
	if waits {
		event = "changed"
	}
	return w.tell(reviewEvent{event, r})
}

// mayDecide says whether the person's vote could count, as far as can be told from here.
func (w *reviewWatch) mayDecide(r api.Request) bool {
	if r.Requester == w.me.ID || r.Subject == w.me.ID || r.RequesterPerson == w.me.Person {
		return false
	}
	return slices.ContainsFunc(r.Deciders(), func(q api.Requirement) bool { return slices.Contains(w.me.Groups, q.Group) })
}

// howLong says for how long a request is, and what else it would give besides.
func howLong(r api.Request) string {
	s := r.Duration.String()
	if r.Extends != nil {
		s += " more"
	}
	if r.Delegation != nil {
		s += ", delegable"
	}
	return s
}

func (w *reviewWatch) tell(e reviewEvent) error {
	var out []byte
	var err error
	switch w.a.output {
	case "json":
		if out, err = json.Marshal(e); err == nil {
			out = append(safeJSON(out), '\n')
		}
	case "yaml":
		if out, err = encodeYAML(e); err == nil {
			out = append([]byte("---\n"), out...)
		}
	default:
		r := e.Request
		out = fmt.Appendf(nil, "%-9s %s  %s → %s  %s  for %s: %s\n", e.Event, r.ID,
			safeLine(r.Subject), r.Service, safeLine(strings.Join(r.Permissions, "; ")), howLong(r), safeLine(r.Reason))
	}
	if err != nil {
		return err
	}
	_, err = w.a.stdout.Write(out)
	return err
}
