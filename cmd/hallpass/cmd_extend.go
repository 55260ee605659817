package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newRequestExtend() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:   "extend GRANT --for 30m --reason TEXT",
		Short: "Ask for a grant to live longer",
		Long: `Ask for a grant to live longer: the same permissions for the same subject. It is a
request of its own, decided on as any other; once it is approved the grant's end is
later, its certificates are renewed as before, and open connections stay.

What has ended is not extended, nor what was made by breaking the glass. How long a
grant may live with its extensions is up to the policy (max_extended).`,
		Example: `  hallpass request extend 0199… --for 30m --reason 'the migration is at 80 %' --wait`,
		Args:    exactArgs("GRANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.length <= 0:
				return usagef("no duration given: --for 30m")
			case strings.TrimSpace(f.reason) == "":
				return usagef("no reason given: --reason 'why you need it'")
			}
			in := api.ExtendInput{Duration: api.Duration(f.length), Reason: f.reason}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				if f.dryRun {
					d, err := c.DryRunExtend(ctx, args[0], in)
					if err != nil {
						return err
					}
					return a.printDryRun(d)
				}
				r, err := c.ExtendGrant(ctx, args[0], in)
				if err != nil {
					return err
				}
				return a.asked(ctx, c, r, f)
			})
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&f.length, "for", 0, "how much longer than it would live now")
	flags.StringVar(&f.reason, "reason", "", "why, for the approvers and the audit log")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the request's id alone")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what the policy would answer")
	addWait(cmd, &f.wait)
	return cmd
}
