package control

import (
	"slices"

	"github.com/hallpass/hallpass/approval"
)

const (
	// maxPages bounds the work of one list call; its page may be short.
	maxPages = 50
	// maxScans is how many of these may have looked at all that one may look at.
	maxScans = 3
	// maxPageBytes bounds the texts that others wrote in one answer: a page of a
	// thousand policies or of much discussed requests would be a gigabyte.
	maxPageBytes = 4 << 20
)

// weight is what an item adds to a page, and where a page that ends with it goes
// on from.
type weight struct {
	id    string
	bytes int
}

func weighRequest(r approval.Request) weight {
	w := weight{r.ID, len(r.Reason) + weighDecisions(r.Decisions)}
	for _, v := range r.Revisions {
		w.bytes += weighTexts(v.Permissions)
	}
	return w
}

func weighGrant(g approval.Grant) weight {
	return weight{g.ID, len(g.SPIFFEID) + len(g.EndReason) + weighTexts(g.Permissions)}
}

func weighChange(c approval.Change) weight {
	w := weight{c.ID, len(c.Edit.YAML) + weighDecisions(c.Decisions)}
	if c.Edit.Group != nil {
		w.bytes += weighTexts(c.Edit.Group.Members) + weighTexts(c.Edit.Group.Substitutes)
	}
	if c.Edit.Person != nil {
		w.bytes += weighTexts(slices.Concat(c.Edit.Person.IDs, c.Edit.Person.Owns))
	}
	return w
}

func weighDecisions(all []approval.Decision) (n int) {
	for _, d := range all {
		n += len(d.Comment) + 256
	}
	return n
}

func weighTexts(all []string) (n int) {
	for _, t := range all {
		n += len(t)
	}
	return n
}

// visiblePage collects a page of what the caller may see, over as many pages of
// the state as that takes.
func visiblePage[T any](
	f approval.Filter, next func(approval.Filter) ([]T, string, error), sees func(T) bool, weigh func(T) weight,
) ([]T, string, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = approval.DefaultLimit
	}
	var out []T
	total, scans := 0, 0
	for range maxPages {
		f.Limit = limit - len(out)
		page, cursor, err := next(f)
		if err != nil {
			return nil, "", err
		}
		for i, t := range page {
			if !sees(t) {
				continue
			}
			out = append(out, t)
			w := weigh(t)
			if total += w.bytes; total >= maxPageBytes && (i < len(page)-1 || cursor != "") {
				return out, w.id, nil
			}
		}
		if len(page) < f.Limit {
			scans++ // it ended before it was full: at the end, or at what it may look at
		}
		if f.Cursor = cursor; cursor == "" || len(out) == limit || scans == maxScans {
			break
		}
	}
	return out, f.Cursor, nil
}
