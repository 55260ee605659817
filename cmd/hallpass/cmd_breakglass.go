package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newBreakGlass() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:   "breakglass SERVICE --allow PERMISSION [--allow …] --for 10m --reason TEXT",
		Short: "Get access at once, without approval, and answer for it afterwards",
		Long: `Get access at once, without the approvals that it would need, where the policy
lets you (break_glass in docs/policy.md). It is for emergencies: it is in the log,
in the metrics and in the audit log, and it opens a review that others must close
with what they found. While a review of yours is overdue, no other glass is broken.

Permissions are written as for hallpass request create. --dry-run asks nothing: it
says whether the policy lets you, for how long, and who would review it.`,
		Example: `  hallpass breakglass payments --allow 'POST /queue/restart' --for 10m --reason 'INC-77: payments is down'`,
		Args:    exactArgs("SERVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := f.input(args[0])
			if err != nil {
				return err
			}
			in.BreakGlass = true
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				if f.dryRun {
					return a.dryRun(ctx, c, in)
				}
				return a.createRequest(ctx, c, in, f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.allow, "allow", nil, "`permission` to have; repeat for more")
	addBundles(cmd, &f)
	flags.DurationVar(&f.length, "for", 0, "how long, from now")
	flags.StringVar(&f.reason, "reason", "", "why, for the reviewers and the audit log")
	flags.StringVar(&f.csr, "csr", "", "PEM certificate request `file`: only its key will get certificates")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the request's id alone")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what the policy would answer")
	a.offersNames(cmd)
	return cmd
}

func (a *app) newReviewOpen() *cobra.Command {
	var f api.Filter
	var all bool
	cmd := &cobra.Command{
		Use:   "open",
		Short: "List the broken glasses whose review is open",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				list, err := c.OpenReviews(ctx, f)
				for ; err == nil && all && list.Next != ""; f.Cursor = "" {
					f.Cursor = list.Next
					var more api.RequestList
					more, err = c.OpenReviews(ctx, f)
					list.Requests, list.Next = append(list.Requests, more.Requests...), more.Next
				}
				if err != nil {
					return err
				}
				return a.print(list, func(w *tabular) {
					w.row("ID", "PERSON", "SERVICE", "MAY", "DUE", "WAITS FOR", "REASON")
					for _, r := range list.Requests {
						due, waits := "", ""
						if b := r.BreakGlass; b != nil && b.DueAt != nil {
							due, waits = w.when(*b.DueAt), strings.Join(b.WaitsFor, ", ")
							if b.Overdue {
								due = "OVERDUE " + due
							}
						}
						w.row(r.ID, r.RequesterPerson, r.Service, brief(r.Permissions), due, waits, r.Reason)
					}
					more(w, list.Next)
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Service, "service", "", "only those for this service")
	flags.StringVar(&f.Requester, "requester", "", "only those of this SPIFFE `ID`")
	flags.IntVar(&f.Limit, "limit", 50, "at most so many")
	flags.BoolVar(&all, "all", false, "every page")
	return cmd
}

func (a *app) newReviewClose() *cobra.Command {
	var comment string
	cmd := &cobra.Command{
		Use:   "close ID --comment TEXT",
		Short: "Close the review of a broken glass with what was found",
		Long: `Close the review of a broken glass with what was found, once its grant is over.
Whoever broke it never does; of several groups that must be heard, each is heard by
another person. What was done with it is in the access records of the service's proxy,
under the grant's id.`,
		Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(comment) == "" {
				return usagef("no finding given: --comment 'what you found'")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				r, err := c.CloseReview(ctx, args[0], comment)
				if err != nil {
					return err
				}
				if err := a.print(r, func(w *tabular) { requestFields(w, r) }); err != nil {
					return err
				}
				if b := r.BreakGlass; b != nil && len(b.WaitsFor) > 0 {
					a.next("still to be heard: %s", strings.Join(b.WaitsFor, ", "))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&comment, "comment", "", "what was found, for the audit log")
	return cmd
}

// glassFields writes what there is to say of a broken glass.
func glassFields(w *tabular, b *api.BreakGlass) {
	if b == nil {
		return
	}
	lines := []string{"without the approvals that it needs"}
	switch {
	case b.ClosedAt != nil:
		lines = append(lines, "reviewed "+w.when(*b.ClosedAt))
	case b.DueAt != nil && b.Overdue:
		lines = append(lines, "review OVERDUE since "+w.when(*b.DueAt))
	case b.DueAt != nil:
		lines = append(lines, "review due "+w.when(*b.DueAt))
	case b.Within > 0:
		lines = append(lines, "to be reviewed within "+b.Within.String())
	}
	if len(b.WaitsFor) > 0 {
		lines = append(lines, "by "+strings.Join(b.WaitsFor, " and "))
	}
	w.field("GLASS BROKEN", lines...)
	for _, f := range b.Findings {
		w.field("finding", fmt.Sprintf("%s as %s, %s: %s", f.Person, f.Identity, w.when(f.At), f.Finding))
	}
}
