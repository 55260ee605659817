package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/proxy/records"
)

// kindAnchor is of entries that say how long access logs are, and their roots.
const kindAnchor = "access.anchor"

// anchor is what the audit log says of an access log at one size.
type anchor struct {
	size  int64
	root  string
	entry uint64
	by    string
	at    time.Time
}

// anchored is what the audit log says of access logs, and how far they are what it says.
type anchored struct {
	logs  map[string]*anchoredLog
	first time.Time // of the lines that begin them
	loose int       // lines of no log
}

// anchoredLog is one access log.
type anchoredLog struct {
	anchors []anchor // by size
	bad     *anchor  // the first that what was read does not have
	good    *anchor  // the last before it that it has
	missing *anchor  // the newest, if it is of more lines than there are
}

// logState is an access log, and how much of it is what its proxy wrote.
type logState struct {
	records.Head

	Anchored  int64   `json:"anchored"` // lines
	Entry     *uint64 `json:"entry,omitempty"`
	By        string  `json:"by,omitempty"`
	Changed   bool    `json:"changed,omitempty"`
	Missing   int64   `json:"missing,omitempty"`   // lines that were anchored and are not here
	Unchecked bool    `json:"unchecked,omitempty"` // nobody was asked
}

// findLogs reads the lines that begin logs.
func findLogs(files []string) (*anchored, error) {
	a := &anchored{logs: map[string]*anchoredLog{}}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		err = records.Scan(f, func(l records.Line) error {
			switch {
			case l.Tree == nil && len(strings.TrimSpace(string(l.Text))) > 0:
				a.loose++
			case l.First != nil:
				a.logs[l.Log] = &anchoredLog{}
				if a.first.IsZero() || l.First.Time.Before(a.first) {
					a.first = l.First.Time
				}
			}
			return nil
		})
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return a, nil
}

// take takes note of an entry of the audit log.
func (a *anchored) take(e audit.Entry) error {
	if e.Kind != kindAnchor {
		return nil
	}
	var d struct {
		Heads []struct {
			By   string `json:"by"`
			Log  string `json:"log"`
			Size int64  `json:"size"`
			Root string `json:"root"`
		} `json:"heads"`
	}
	if err := json.Unmarshal(e.Details, &d); err != nil {
		return fmt.Errorf("entry %d: %w", e.Index, err)
	}
	for _, h := range d.Heads {
		if l := a.logs[h.Log]; l != nil {
			l.anchors = append(l.anchors, anchor{h.Size, h.Root, e.Index, h.By, e.Time})
		}
	}
	return nil
}

// sort puts the anchors into the order in which lines are read.
func (a *anchored) sort() {
	for _, l := range a.logs {
		slices.SortStableFunc(l.anchors, func(x, y anchor) int { return cmp.Compare(x.size, y.size) })
	}
}

// ask reads the anchors of the live log.
func (a *anchored) ask(ctx context.Context, c *api.Client) error {
	if len(a.logs) == 0 {
		return nil
	}
	head, err := c.AuditEntries(ctx, 0, 1)
	if err != nil {
		return err
	}
	from, err := firstSince(ctx, c, a.first.Add(-proofSkew), head.Size)
	if err != nil {
		return err
	}
	return eachEntry(ctx, c, from, head.Size, func(e audit.Entry, _ []byte) (more bool, err error) { return true, a.take(e) })
}

// reading follows one log of one file while it is read. A log that is in two files is
// looked at in both.
type reading struct {
	log  *anchoredLog
	next int // of its anchors
}

// line compares a log's root with what was anchored at that size.
func (r *reading) line(tree *records.Tree) {
	for r.log != nil && r.next < len(r.log.anchors) && r.log.anchors[r.next].size <= tree.Size() {
		at := &r.log.anchors[r.next]
		r.next++
		if at.size != tree.Size() {
			continue
		}
		if tree.Root() != at.root {
			r.bad(at)
			return
		}
		if r.log.good == nil || r.log.good.size < at.size {
			r.log.good = at
		}
	}
}

// bad takes note of an anchor that does not hold; after the first, none can.
func (r *reading) bad(at *anchor) {
	if r.log.bad == nil || at.size < r.log.bad.size {
		r.log.bad = at
	}
	r.next = len(r.log.anchors)
}

// end takes note of lines that were anchored and are not there.
func (r *reading) end() {
	if r.log != nil && r.next < len(r.log.anchors) {
		r.log.missing = &r.log.anchors[len(r.log.anchors)-1]
	}
}

// states says of each log how much of it is anchored, and of what is wrong.
func (a *anchored) states(trees map[string]records.Head, incomplete bool) (all []logState, broken []string) {
	for _, name := range slices.Sorted(maps.Keys(trees)) {
		s := logState{Head: trees[name], Unchecked: a == nil}
		if a != nil {
			l := a.logs[name]
			if l.good != nil {
				s.Anchored, s.Entry, s.By = l.good.size, &l.good.entry, l.good.by
			}
			if l.missing != nil {
				s.Missing = max(l.missing.size-s.Size, 0) // another copy may have them
			}
			if s.Changed = l.bad != nil; s.Changed || s.Missing > 0 && !incomplete {
				broken = append(broken, l.words(s))
			}
		}
		all = append(all, s)
	}
	return all, broken
}

// words says how a log differs from what was anchored.
func (l *anchoredLog) words(s logState) string {
	if !s.Changed {
		return fmt.Sprintf("log %s has %d lines, and %d were anchored at entry %d: it was cut short, or copied before %s, which --incomplete takes",
			s.Log, s.Size, l.missing.size, l.missing.entry, l.missing.at.UTC().Format(time.RFC3339))
	}
	text := fmt.Sprintf("log %s was changed since: its first %d lines are not what was anchored at entry %d", s.Log, l.bad.size, l.bad.entry)
	if l.good != nil && l.good.size < l.bad.size {
		text += fmt.Sprintf("; its first %d are as anchored at entry %d", l.good.size, l.good.entry)
	}
	return text
}

// say is how much of a log is anchored, for people.
func (s logState) say() string {
	switch {
	case s.Unchecked:
		return "not checked against anchors"
	case s.Changed:
		return "CHANGED SINCE"
	case s.Entry == nil && s.Missing > 0:
		return fmt.Sprintf("%d MORE were anchored", s.Missing)
	case s.Entry == nil:
		return "NOT anchored"
	case s.Missing > 0:
		return fmt.Sprintf("first %d anchored at entry %d; %d MORE were anchored", s.Anchored, *s.Entry, s.Missing)
	case s.Anchored < s.Size:
		return fmt.Sprintf("first %d anchored at entry %d", s.Anchored, *s.Entry)
	}
	return fmt.Sprintf("anchored at entry %d", *s.Entry)
}
