package control

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// Services implements api.CatalogueBackend: a view of the policy in force, in which
// each sees what rules that name them let them ask for. Words are looked for in that
// alone: were they found in what is hidden, a stranger would read it letter by letter.
func (b backend) Services(ctx context.Context, call api.Call, f api.ServiceFilter) (out api.ServiceList, err error) {
	out.Services = []api.Service{}
	if f.Cursor != "" && grant.ValidService(f.Cursor) != nil {
		return out, api.NewProblem(api.CodeInvalid, "cursor: it is not one that this list gave", "leave it out to begin anew")
	}
	limit := api.MaxServices
	if f.Limit > 0 {
		limit = min(f.Limit, limit)
	}
	words := strings.Fields(strings.ToLower(f.Query))
	var p *policy.Policy
	var groups []string
	who, total := call.Caller.ID, 0
	if err := b.view(ctx, call, func(s approval.State) (err error) {
		p, err = s.Rules()
		groups = s.GroupsOf(s.PersonName(who))
		return err
	}); err != nil {
		return out, err
	}
	for o := range p.Offers(who, groups, f.Cursor, f.Name) { // outside of the view, which must be short
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if !holds(o, words) {
			continue
		}
		if len(out.Services) == limit || total >= maxPageBytes {
			out.Next = out.Services[len(out.Services)-1].Name
			return out, nil
		}
		out.Services = append(out.Services, wireOffer(o))
		total += weighOffer(o)
	}
	return out, nil
}

// holds reports whether each word, in lower case, is somewhere in what the caller sees
// of a service.
func holds(o policy.Offer, words []string) bool {
	if len(words) == 0 {
		return true
	}
	texts := slices.Concat([]string{o.Name, o.Description, o.Tier}, o.Owners, o.Permissions)
	for key, value := range o.Labels {
		texts = append(texts, key+"="+value)
	}
	for _, b := range o.Bundles {
		texts = slices.Concat(texts, []string{b.Name, b.Description}, b.Permissions)
	}
	for i, t := range texts {
		texts[i] = strings.ToLower(t)
	}
	for _, word := range words {
		if !slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(t, word) }) {
			return false
		}
	}
	return true
}

func wireOffer(o policy.Offer) api.Service {
	return api.Service{
		Name: o.Name, Description: o.Description, Tier: o.Tier, Labels: o.Labels, Owners: list(o.Owners), Permissions: list(o.Permissions),
		Bundles: mapped(o.Bundles, func(b policy.Bundle) api.ServiceBundle {
			return api.ServiceBundle{Name: b.Name, Description: b.Description, Permissions: list(b.Permissions)}
		}),
	}
}

func weighOffer(o policy.Offer) int {
	n := len(o.Description) + weighTexts(o.Owners) + weighTexts(o.Permissions)
	for _, b := range o.Bundles {
		n += len(b.Description) + weighTexts(b.Permissions)
	}
	return n
}

// expanded puts the permissions in the place of the bundles that a request names. It is
// the last that these names do: whatever the policy makes of them later, the request is
// what it was.
func expanded(p *policy.Policy, who spiffeid.ID, groups []string, a asked) (asked, error) {
	if len(a.in.Bundles) == 0 {
		return a, nil
	}
	a.bundles = slices.Compact(slices.Sorted(slices.Values(a.in.Bundles)))
	all := []grant.Scope{a.scope}
	for _, name := range a.bundles {
		b, ok := p.Offered(who, groups, a.in.Service, name)
		if !ok {
			return a, api.NewProblem(api.CodeInvalid, fmt.Sprintf("bundles: there is no %.80q of %s that you may ask for", name, a.in.Service),
				"see which there are: hallpass request search "+a.in.Service)
		}
		all = append(all, b.Scope())
	}
	var err error
	if a.scope, err = policy.Union(a.in.Service, all...); err != nil {
		return a, api.NewProblem(api.CodeInvalid, err.Error(), "ask for fewer bundles at a time")
	}
	return a, nil
}
