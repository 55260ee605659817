package console

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// Office hours, in the zone of whoever reads, Monday to Friday.
const (
	officeOpens  = 8
	officeCloses = 18
)

// tierOf is what the policy in force calls a service's tier; "" for nothing.
func tierOf(p api.Policy, service string) string {
	if p.YAML == "" {
		return ""
	}
	parsed, err := policy.Parse([]byte(p.YAML))
	if err != nil {
		return "" // the cluster took it, and is newer than this program
	}
	tier, _ := parsed.Service(service)
	return tier
}

// sensitive are the tiers that are pointed out.
func sensitive(tier string) bool {
	return slices.Contains([]string{"production", "prod", "critical"}, strings.ToLower(tier))
}

// risks says what about a request deserves a second look. It is the same for
// everyone who may see the same, in the same time zone: nothing is guessed.
func risks(r api.Request, b requestBody, zone *time.Location) (out []string) {
	if sensitive(b.Tier) {
		out = append(out, fmt.Sprintf("The policy calls %s %s.", r.Service, b.Tier))
	}
	approved := slices.ContainsFunc(b.Earlier, func(e api.Request) bool { return e.State == api.RequestApproved })
	if !approved && !b.More {
		out = append(out, "First time: of the requests that you may see, none gave this subject access to "+r.Service+" before.")
	}
	for _, text := range r.Permissions {
		if why := writes(text); why != "" {
			out = append(out, text+": "+why)
		}
	}
	if b.Foreign {
		out = append(out, "It was asked for from another trust domain: "+r.Requester)
	}
	if r.Requester != r.Subject {
		out = append(out, "The access is for somebody else than who asks for it.")
	}
	if at, verb := begins(r); offHours(at.In(zone)) {
		out = append(out, fmt.Sprintf("Off-hours: %s %s, which is not Monday to Friday, %d to %d o'clock, where you are.",
			verb, at.In(zone).Format("Mon 15:04 MST"), officeOpens, officeCloses))
	}
	return out
}

// begins is when a request wants to begin.
func begins(r api.Request) (at time.Time, verb string) {
	if r.Start != nil {
		return *r.Start, "it would begin on"
	}
	return r.CreatedAt, "it was asked for on"
}

func offHours(t time.Time) bool {
	return t.Weekday() == time.Saturday || t.Weekday() == time.Sunday || t.Hour() < officeOpens || t.Hour() >= officeCloses
}

// writes says why a permission may change something; "" for one that only reads,
// as far as methods say.
func writes(permission string) string {
	p, err := grant.ParsePermission(permission)
	if err != nil {
		return "this console cannot read it."
	}
	switch p.Kind() {
	case grant.KindHTTP:
		methods, _, _ := strings.Cut(p.String(), " ")
		for m := range strings.SplitSeq(methods, ",") {
			if m == "*" {
				return "may change things, with any method."
			}
			if !slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, m) {
				return "may change things, with " + m + "."
			}
		}
		return ""
	case grant.KindGRPC:
		return "may change things: the name of a gRPC method does not say."
	case grant.KindPostgres:
		return "may do whatever the role may."
	case grant.KindTCP:
		return "may do whatever the service does over TCP."
	default:
		return "this console cannot read it."
	}
}
