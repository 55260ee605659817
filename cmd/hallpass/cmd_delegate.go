package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
)

func (a *app) newGrantDelegate() *cobra.Command {
	var to, reason string
	var allow []string
	var length time.Duration
	var quiet bool
	cmd := &cobra.Command{
		Use:   "delegate GRANT --to SPIFFE-ID --for 10m --reason TEXT [--allow PERMISSION …]",
		Short: "Make a narrower and shorter grant of yours, for an agent or a job",
		Long: `Make a narrower and shorter grant of yours, for an agent or a job, without asking
again: where yours was asked for with --delegable, and its approvers were shown to
whom and for how long it may be handed on. It ends with yours, however that ends, and
goes no further. Whoever gets it fetches its certificate with an identity of its own.`,
		Example: `  hallpass grant delegate 0199… --to spiffe://acme.test/agent/helper --allow 'GET /accounts/42' --for 10m --reason 'looks it up for me'`,
		Args:    exactArgs("GRANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case to == "":
				return usagef("nobody given to delegate to: --to spiffe://…")
			case length <= 0:
				return usagef("no duration given: --for 10m")
			case strings.TrimSpace(reason) == "":
				return usagef("no reason given: --reason 'what for'")
			}
			for _, text := range allow {
				if _, err := grant.ParsePermission(text); err != nil {
					return usagef("--allow: %w", err)
				}
			}
			in := api.DelegateInput{Subject: to, Permissions: allow, Duration: api.Duration(length), Reason: reason}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				r, err := c.DelegateGrant(ctx, args[0], in)
				if err != nil {
					return err
				}
				if quiet {
					fmt.Fprintln(a.stdout, safeLine(r.ID))
					return nil
				}
				if err := a.print(r, func(w *tabular) { requestFields(w, r) }); err != nil {
					return err
				}
				a.next("%s runs: hallpass grant cert %s", r.Subject, r.ID)
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&to, "to", "", "SPIFFE `ID` that gets the access")
	flags.StringArrayVar(&allow, "allow", nil, "`permission` of yours to hand on; repeat for more (default: all)")
	flags.DurationVar(&length, "for", 0, "how long, from now; not beyond the end of yours")
	flags.StringVar(&reason, "reason", "", "what for, for the audit log")
	flags.BoolVarP(&quiet, "quiet", "q", false, "print the new grant's id alone")
	return cmd
}

// delegationFields says what may be handed on.
func delegationFields(w *tabular, d *api.Delegation) {
	if d == nil {
		return
	}
	w.field("DELEGABLE", fmt.Sprintf("%d at a time, for %s each, to:", d.Most, d.MaxDuration), strings.Join(d.To, "\n"))
}
