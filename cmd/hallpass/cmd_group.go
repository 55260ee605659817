package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

// turnFlags say how the members of a group take turns in it.
type turnFlags struct {
	rota      []string
	from      string
	every     time.Duration
	atOnce    int
	resolver  bool
	otherwise string
}

func (f *turnFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.rota, "rota", nil, "`person` who takes turns, in this order; repeat for more (default: all members are in the group all the time)")
	flags.StringVar(&f.from, "from", "", "when the first one's turn begins, as `RFC 3339` has it (with --rota)")
	flags.DurationVar(&f.every, "every", 7*24*time.Hour, "from one hand-over to the next (with --rota)")
	flags.IntVar(&f.atOnce, "at-once", 1, "how many are on call together (with --rota)")
	flags.BoolVar(&f.resolver, "resolver", false, "who is on call is what the resolver says that the control nodes are configured with")
	flags.StringVar(&f.otherwise, "otherwise", "", "who is in the group while the resolver says nothing: members or nobody (with --resolver)")
	cmd.MarkFlagsMutuallyExclusive("rota", "resolver")
	cmd.MarkFlagsRequiredTogether("rota", "from")
	cmd.MarkFlagsRequiredTogether("resolver", "otherwise")
}

// onCall is what they say; nil where members do not take turns.
func (f *turnFlags) onCall(cmd *cobra.Command) (*api.OnCall, error) {
	for _, name := range []string{"every", "at-once"} {
		if len(f.rota) == 0 && cmd.Flags().Changed(name) {
			return nil, usagef("--%s is for --rota", name) // who wrote it believes that it counts
		}
	}
	switch {
	case f.resolver:
		return &api.OnCall{Resolver: true, Otherwise: f.otherwise}, nil
	case len(f.rota) == 0:
		return nil, nil //nolint:nilnil // they do not
	}
	from, err := time.Parse(time.RFC3339, f.from)
	if err != nil {
		return nil, usagef("--from %q: want a moment such as 2026-12-07T09:00:00Z", f.from)
	}
	return &api.OnCall{Order: f.rota, From: &from, Every: api.Duration(f.every), AtOnce: f.atOnce}, nil
}

// inItNow is who counts in a group now.
func inItNow(g api.Group) string {
	switch {
	case g.OnCall == nil:
		return "all"
	case len(g.Now) == 0:
		return "nobody"
	default:
		return strings.Join(g.Now, ", ")
	}
}
