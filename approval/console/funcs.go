package console

import (
	"html/template"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
)

// funcs are what templates can call.
func (c *Console) funcs() template.FuncMap {
	return template.FuncMap{
		"when":    c.when,
		"instant": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"words":   words,
		"who":     who,
		"link":    link,
		"brief":   brief,
		"changes": whatChanges,
		"item":    newItem,
		"row":     func(f frame, item any) row { return row{f.Me, f.Token, item} },
		"stamp":   stamp,
	}
}

// item is an entry of the navigation.
type item struct {
	Href, Name string
	Current    bool
}

func newItem(href, name, page string) item { return item{href, name, strings.EqualFold(name, page)} }

// row is an item of a list, and who reads it.
type row struct {
	Me    *api.WhoAmI
	Token string
	Item  any
}

// stamp takes an instant as the API has it, there or not.
func stamp(t any) time.Time {
	switch t := t.(type) {
	case time.Time:
		return t
	case *time.Time:
		if t != nil {
			return *t
		}
	}
	return time.Time{}
}

// when writes an instant in the zone of whoever reads.
func (c *Console) when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.In(c.zone).Format("Mon 2 Jan 2006 15:04:05 MST")
}

// words says a permission in plain words; one that cannot be read is shown as it is.
func words(permission string) string {
	p, err := grant.ParsePermission(permission)
	if err != nil {
		return permission
	}
	return p.Words()
}

// who is the part of a SPIFFE ID by which people know each other: "user/alice"
// of their own trust domain, all of it of another.
func who(me *api.WhoAmI, id string) string {
	if me == nil || me.TrustDomain == "" {
		return id
	}
	if path, ok := strings.CutPrefix(id, "spiffe://"+me.TrustDomain+"/"); ok {
		return path
	}
	return id
}

// brief is the first few permissions, and how many more there are.
func brief(permissions []string) (out struct {
	First []string
	More  int
},
) {
	n := min(len(permissions), 3)
	out.First, out.More = permissions[:n], len(permissions)-n
	return out
}
