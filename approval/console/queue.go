package console

import (
	"errors"
	"math"
	"strconv"

	"github.com/hallpass/hallpass/approval/api"
)

// farAway is beyond the end of every audit log: who asks for entries from there
// on is told the log's size.
const farAway = math.MaxInt64

// queuePage is how many requests a page of the queue has.
const queuePage = 50

// queued is a request in the queue.
type queued struct {
	api.Request
	standing
	Needs   []need
	Instead []need // in place of it, where it is escalated
}

type queueBody struct {
	Decide, Mine, Others []queued
	Changes              int           // of policy, groups and persons that one may decide on
	Glasses              []api.Request // that were broken, and whose review is open
	MoreGlasses          bool
	Next                 string // cursor
	First                bool
}

// queue shows what waits for decisions.
func (c *Console) queue(v visit) (view, error) {
	f := api.Filter{State: api.RequestPending, Page: api.Page{Limit: queuePage, Cursor: v.URL.Query().Get("cursor")}}
	var list api.RequestList
	var persons api.Persons
	var proposed api.ChangeList
	var glasses api.RequestList
	err := together(func() (err error) {
		if f.Cursor == "" {
			glasses, err = v.api.OpenReviews(v.Context(), api.Filter{Page: api.Page{Limit: listPage}})
		}
		if errors.Is(err, api.ErrNotFound) {
			return nil // a node of an earlier release, of which no glass is broken
		}
		return err
	}, func() (err error) {
		list, err = v.api.Requests(v.Context(), f)
		return err
	}, func() (err error) {
		persons, err = v.persons()
		return err
	}, func() (err error) {
		if v.me.Admin {
			proposed, err = v.api.Changes(v.Context(), api.ChangePending, api.Page{Limit: listPage})
		}
		return err
	})
	if err != nil {
		return view{}, err
	}
	p := newPeople(persons)
	b := queueBody{Next: list.Next, First: f.Cursor == "", Glasses: glasses.Requests, MoreGlasses: glasses.Next != ""}
	for _, ch := range proposed.Changes {
		if changeStanding(v.me, ch).May {
			b.Changes++
		}
	}
	for _, r := range list.Requests {
		q := queued{r, p.standing(v.me, r), p.needs(r, r.Require), p.instead(r)}
		switch {
		case q.May:
			b.Decide = append(b.Decide, q)
		case q.Mine:
			b.Mine = append(b.Mine, q)
		default:
			b.Others = append(b.Others, q)
		}
	}
	return view{page: "queue", title: "Queue", body: b}, nil
}

// persons reads the directory. A workload may not, and is told of no person.
func (v visit) persons() (api.Persons, error) {
	if v.me.Person == "" {
		return api.Persons{}, nil
	}
	return v.api.Persons(v.Context())
}

// position is the id of the newest event; "" where the log is not one's to read.
func (v visit) position() string {
	if v.me.Person == "" {
		return ""
	}
	run, err := v.api.AuditEntries(v.Context(), farAway, 1)
	if err != nil {
		return "" // the page is of more use without news than not at all
	}
	return strconv.FormatUint(run.Size, 10)
}
