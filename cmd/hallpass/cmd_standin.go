package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newStandInCommand() *cobra.Command {
	var in api.StandInInput
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "stand-in GROUP --by PERSON --for 72h --reason WHY",
		Short: "Have one of a group's substitutes stand in for you from now on, or end that: stand-in end",
		Args:  exactArgs("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case in.By == "":
				return usagef("nobody named: --by PERSON, one of the group's substitutes: hallpass group list")
			case length <= 0:
				return usagef("no duration given: --for 72h")
			case strings.TrimSpace(in.Reason) == "":
				return usagef("no reason given: --reason 'on holiday'")
			}
			in.Duration = api.Duration(length)
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				out, err := c.StandIn(ctx, args[0], in)
				if err != nil {
					return err
				}
				return a.print(out, func(w *tabular) {
					w.line("%s stands in for %s in %s until %s", out.By, out.For, out.Group, w.when(out.Until))
				})
			})
		},
	}
	cmd.Flags().StringVar(&in.By, "by", "", "name of the `person` who counts in your place, one of the group's substitutes")
	cmd.Flags().DurationVar(&length, "for", 0, "how long, at most 720h")
	cmd.Flags().StringVar(&in.Reason, "reason", "", "why, for the audit log")
	cmd.AddCommand(a.newStandInEnd())
	return cmd
}

func (a *app) newStandInEnd() *cobra.Command {
	var person string
	cmd := &cobra.Command{
		Use:   "end GROUP [--person PERSON]",
		Short: "Have the member back before the time, who is you unless you stand in for another, or are an admin",
		Args:  exactArgs("GROUP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				out, err := c.EndStandIn(ctx, args[0], person)
				if err != nil {
					return err
				}
				return a.print(out, func(w *tabular) {
					w.line("%s counts in %s again, and %s does not in their place", out.For, out.Group, out.By)
				})
			})
		},
	}
	cmd.Flags().StringVar(&person, "person", "", "name of the `person` who is back (default: you)")
	return cmd
}

// away says who stands in for whom in a group, and until when.
func away(w *tabular, g api.Group) (texts []string) {
	for _, in := range g.StandIns {
		texts = append(texts, fmt.Sprintf("%s (%s stands in until %s)", in.For, in.By, w.when(in.Until)))
	}
	return texts
}
