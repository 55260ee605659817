package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy/records"
)

func (a *app) newAuditAccess() *cobra.Command {
	var id, export string
	var v verifying
	var offline, unused, unanchored, incomplete bool
	cmd := &cobra.Command{
		Use:   "access FILE...",
		Short: "What grants were used for, by proxies' access logs, and what less would have done",
		Long: `Read access logs of proxies, rotated and compressed ones too, and say for each grant
what it allowed, how often each of its permissions was used, and the narrowest scope
that covers this use. FILE - is standard input. What a grant allows is asked of the
cluster; with --offline nobody is asked, and only the use is shown.

Proxies have their logs' Merkle roots written down in the audit log every few
seconds. What is read here is compared with that: lines that were changed, taken out
or added since are told, and the exit status is 1, as it is for a log that was never
anchored, unless --allow-unanchored is given. The newest lines may not be anchored
yet. Of a log that is being written, copy it after the export: one with fewer lines
than were anchored is refused unless --incomplete is given.

The live log is asked. With --export FOLDER, that of audit export, nothing is asked of
anybody: the export is verified first, with --manifest, --keys or --key.

Give all files of a proxy at once: each goes on from the root of the one before, and
has to lead there, also with --offline.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: no access log given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			u := newUsage(id)
			args, done, err := a.spooled(args)
			if err != nil {
				return err
			}
			defer done()
			if export != "" || !offline {
				if u.anchors, err = findLogs(args); err != nil {
					return err
				}
			}
			switch {
			case export != "":
				err = a.eachExported(export, v, u.anchors.take)
			case !offline:
				err = a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return u.anchors.ask(ctx, c) })
			}
			if err == nil && u.anchors != nil {
				u.anchors.sort()
			}
			if err == nil {
				err = a.readUsage(u, args)
			}
			if err != nil {
				return err
			}
			if !offline && export == "" {
				err := a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return u.ask(ctx, c) })
				if err != nil {
					return err
				}
			}
			return a.sayUsage(u, unused, unanchored, incomplete)
		},
	}
	cmd.Flags().StringVar(&id, "grant", "", "look at this grant alone, by its `id`")
	cmd.Flags().BoolVar(&offline, "offline", false, "ask nobody what the grants allow, nor what was anchored")
	cmd.Flags().BoolVar(&unanchored, "allow-unanchored", false, "take logs that were never anchored, as those of proxies without revocation.servers")
	cmd.Flags().BoolVar(&incomplete, "incomplete", false, "take logs with fewer lines than were anchored, as copies of one that is being written")
	cmd.Flags().StringVar(&export, "export", "", "`folder` of audit export to compare with, instead of the live log")
	v.exportFlags(cmd)
	cmd.Flags().BoolVar(&unused, "unused", false, "show only grants that less would have done for")
	return cmd
}

// usage is what access logs say of grants.
type usage struct {
	only    string // a grant's id, or ""
	records int
	unread  int
	grants  map[string]*grantUse
	trees   map[string]records.Head // by log, at the end of what was read of it
	expect  []records.Head          // what the first lines of others say they were
	anchors *anchored               // nil: nobody was asked
}

func newUsage(only string) *usage {
	return &usage{only: only, grants: map[string]*grantUse{}, trees: map[string]records.Head{}}
}

// grantUse is one grant.
type grantUse struct {
	Grant    string           `json:"grant"`
	Service  string           `json:"service"`
	Subject  string           `json:"subject"`
	First    time.Time        `json:"first"`
	Last     time.Time        `json:"last"`
	Denied   int              `json:"denied"`
	Observed int              `json:"would_deny"` // went through in observe mode only
	Granted  []string         `json:"granted,omitempty"`
	Used     []*permissionUse `json:"used"`
	Unused   []string         `json:"unused,omitempty"`
	// Suggest is the narrowest scope that covers the use, where it is less than what was granted.
	Suggest []string `json:"suggest,omitempty"`

	by map[string]*permissionUse
}

// permissionUse is one permission of a grant.
type permissionUse struct {
	Permission string    `json:"permission"`
	Times      int       `json:"times"`
	Last       time.Time `json:"last"`

	shape useShape
}

func (a *app) readUsage(u *usage, files []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(u.read(f), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if u.records == 0 && u.unread > 0 {
		return fmt.Errorf("there is no access record in %s: want the access logs of proxies", strings.Join(files, ", "))
	}
	return nil
}

func (u *usage) read(r io.Reader) error {
	var tree *records.Tree
	var log string
	var against reading
	keep := func() {
		if tree == nil {
			return
		}
		against.end()
		if before, twice := u.trees[log]; !twice || before.Size < tree.Size() {
			u.trees[log] = tree.Head(log)
		}
	}
	err := records.Scan(r, func(l records.Line) error {
		if l.First != nil {
			keep()
			against = reading{}
			if u.anchors != nil {
				against.log = u.anchors.logs[l.Log]
			}
			if l.First.Previous != nil {
				u.expect = append(u.expect, *l.First.Previous)
			}
		}
		if tree, log = l.Tree, l.Log; tree != nil {
			against.line(tree)
		}
		if l.First == nil && len(strings.TrimSpace(string(l.Text))) > 0 {
			u.record(l.Text)
		}
		return nil
	})
	keep()
	return err
}

func (u *usage) record(line []byte) {
	var r struct {
		Time       time.Time `json:"time"`
		Kind       string    `json:"kind"`
		Event      string    `json:"event"`
		Service    string    `json:"service"`
		Subject    string    `json:"subject"`
		Grant      string    `json:"grant"`
		Permission string    `json:"permission"`
		Decision   string    `json:"decision"`
		WouldDeny  string    `json:"would_deny"`
		Method     string    `json:"method"`
		Path       string    `json:"path"`
	}
	if err := json.Unmarshal(line, &r); err != nil || r.Kind == "" || r.Time.IsZero() {
		u.unread++
		return
	}
	u.records++
	if r.Grant == "" || r.Event != "end" || u.only != "" && r.Grant != u.only {
		return
	}
	g := u.grants[r.Grant]
	if g == nil {
		g = &grantUse{Grant: r.Grant, Service: r.Service, Subject: r.Subject, First: r.Time, Used: []*permissionUse{}, by: map[string]*permissionUse{}}
		u.grants[r.Grant] = g
	}
	if r.Time.Before(g.First) {
		g.First = r.Time
	}
	if r.Time.After(g.Last) {
		g.Last = r.Time
	}
	switch {
	case r.Decision != "allow":
		g.Denied++
	case r.WouldDeny != "":
		g.Observed++
	case r.Permission != "":
		g.use(r.Permission, r.Time, r.Method, r.Path)
	}
}

func (g *grantUse) use(permission string, at time.Time, method, path string) {
	p := g.by[permission]
	if p == nil {
		p = &permissionUse{Permission: permission}
		g.by[permission] = p
		g.Used = append(g.Used, p)
	}
	p.Times++
	if at.After(p.Last) {
		p.Last = at
	}
	p.shape.add(method, path)
}

// ask asks what the grants allow.
func (u *usage) ask(ctx context.Context, c *api.Client) error {
	if u.only != "" && u.grants[u.only] == nil {
		u.grants[u.only] = &grantUse{Grant: u.only, Used: []*permissionUse{}, by: map[string]*permissionUse{}} // never used
	}
	for _, id := range slices.Sorted(maps.Keys(u.grants)) {
		g := u.grants[id]
		got, err := c.Grant(ctx, id)
		var p *api.Problem
		switch {
		case errors.As(err, &p) && p.Code == api.CodeNotFound && u.only == "":
			continue // forgotten by now, or of another cluster
		case err != nil:
			return err
		}
		g.Granted, g.Service, g.Subject = got.Permissions, got.Service, got.Subject
		g.compare()
	}
	return nil
}

// compare says what of the grant was not used, and what less would have done.
func (g *grantUse) compare() {
	for _, text := range g.Granted {
		if g.by[text] == nil {
			g.Unused = append(g.Unused, text)
		}
	}
	var less []grant.Permission
	for _, p := range g.Used {
		whole, err := grant.ParsePermission(p.Permission)
		if err != nil {
			return // of a proxy that knows more than we do
		}
		less = append(less, p.shape.narrow(whole)...)
	}
	scope, err := grant.NewScope(g.Service, less...)
	if err != nil {
		return // nothing was used, or it cannot be written as one scope
	}
	if texts := scope.Texts(); !slices.Equal(texts, g.Granted) {
		g.Suggest = texts
	}
}

// usedAccess is the answer of `audit access`.
type usedAccess struct {
	Records int         `json:"records"`
	Unread  int         `json:"unread_lines"`
	Loose   int         `json:"lines_of_no_log,omitempty"` // before the first that begins one
	Logs    []logState  `json:"logs"`
	Broken  []string    `json:"broken"` // why a log is not what it was
	Absent  []string    `json:"absent"` // logs that others go on from, and that were not given
	Grants  []*grantUse `json:"grants"`
}

func (a *app) sayUsage(u *usage, unused, unanchored, incomplete bool) error {
	out := usedAccess{Records: u.records, Unread: u.unread, Absent: []string{}, Grants: []*grantUse{}}
	logs, broken := u.anchors.states(u.trees, incomplete)
	out.Logs, out.Broken = append([]logState{}, logs...), append([]string{}, broken...)
	if u.anchors != nil {
		out.Loose = u.anchors.loose
	}
	for _, want := range u.expect {
		got, ok := u.trees[want.Log]
		switch {
		case !ok:
			out.Absent = append(out.Absent, want.Log)
		case got.Size < want.Size:
			out.Broken = append(out.Broken, fmt.Sprintf("log %s has %d lines, and had %d: it was cut short", want.Log, got.Size, want.Size))
		case got.Size > want.Size:
			out.Broken = append(out.Broken, fmt.Sprintf("log %s has %d lines, and had %d when it ended: lines were added", want.Log, got.Size, want.Size))
		case got.Root != want.Root:
			out.Broken = append(out.Broken, fmt.Sprintf("log %s has other lines than it had: its root is %s, and was %s", want.Log, got.Root, want.Root))
		}
	}
	for _, g := range u.grants {
		if unused && len(g.Suggest) == 0 && len(g.Unused) == 0 {
			continue
		}
		slices.SortFunc(g.Used, func(x, y *permissionUse) int { return cmp.Compare(x.Permission, y.Permission) })
		out.Grants = append(out.Grants, g)
	}
	slices.SortFunc(out.Grants, func(x, y *grantUse) int { return cmp.Or(x.First.Compare(y.First), cmp.Compare(x.Grant, y.Grant)) })
	if u.unread > 0 {
		fmt.Fprintf(a.stderr, "warning: %d lines are no access records, and were not looked at\n", u.unread)
	}
	for _, log := range out.Absent {
		fmt.Fprintf(a.stderr, "warning: log %s comes before one of these, and was not given\n", log)
	}
	if err := a.print(out, out.table); err != nil {
		return err
	}
	if len(out.Broken) > 0 {
		return fmt.Errorf("these logs are not what their proxies wrote: %s", strings.Join(out.Broken, "; "))
	}
	if !unanchored {
		return out.anchored()
	}
	return nil
}

// anchored refuses logs that were never anchored: whoever changes one could give it
// another name.
func (o usedAccess) anchored() error {
	for _, l := range o.Logs {
		if l.Entry == nil && !l.Unchecked {
			return fmt.Errorf("log %s is NOT anchored: its proxy does not reach the cluster or has just begun, or the log is not its; --allow-unanchored takes it all the same", l.Log)
		}
	}
	if o.Loose > 0 {
		return fmt.Errorf("%d lines are of no log, and so NOT anchored; --allow-unanchored takes them all the same", o.Loose)
	}
	return nil
}

// spooled puts standard input into a file, since logs are read twice. done removes it.
func (a *app) spooled(files []string) (all []string, done func(), err error) {
	all, done = slices.Clone(files), func() {}
	i := slices.Index(all, "-")
	if i < 0 {
		return all, done, nil
	}
	f, err := os.CreateTemp("", "hallpass-access-")
	if err != nil {
		return nil, nil, err
	}
	_, err = io.Copy(f, a.stdin)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(err, os.Remove(f.Name()))
	}
	all[i] = f.Name()
	return slices.DeleteFunc(all, func(name string) bool { return name == "-" }), func() { _ = os.Remove(f.Name()) }, nil // a copy in the temporary folder
}

func (o usedAccess) table(w *tabular) {
	w.field("records", strconv.Itoa(o.Records))
	w.field("logs", strconv.Itoa(len(o.Logs)))
	w.flush()
	w.row("LOG", "LINES", "AUDIT LOG", "BY")
	for _, l := range o.Logs {
		w.row(l.Log, strconv.FormatInt(l.Size, 10), l.say(), l.By)
	}
	w.flush()
	for _, g := range o.Grants {
		w.line("")
		w.line("grant %s of %s at %s", g.Grant, g.Subject, g.Service)
		w.row("  PERMISSION", "TIMES", "LAST")
		for _, p := range g.Used {
			w.row("  "+p.Permission, strconv.Itoa(p.Times), p.Last.UTC().Format(time.RFC3339))
		}
		for _, text := range g.Unused {
			w.row("  "+text, "never", "")
		}
		w.flush()
		if g.Denied > 0 {
			w.line("  refused %d times", g.Denied)
		}
		if g.Observed > 0 {
			w.line("  beyond it %d times, which observe mode let through", g.Observed)
		}
		if len(g.Suggest) > 0 {
			w.line("  this would have done: %s", strings.Join(g.Suggest, "; "))
		}
	}
}
