package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
)

func (a *app) newReviewCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "review",
		Short: "Decide on other people's requests: list, show, approve, deny, watch; look at broken glasses: open, close",
	}
	cmd.AddCommand(a.newReviewList(), a.newReviewShow(), a.newReviewApprove(), a.newReviewDeny(), a.newReviewWatch(), a.newReviewOpen(), a.newReviewClose())
	return cmd
}

func (a *app) newReviewList() *cobra.Command {
	f := api.Filter{State: api.RequestPending}
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the requests that wait for decisions",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.listRequests(cmd.Context(), f, all)
		},
	}
	addFilter(cmd, &f, &all)
	return cmd
}

func (a *app) newReviewShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show all of a request, with the hash that a decision names",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				r, err := c.Request(ctx, args[0])
				if err != nil {
					return err
				}
				if err := a.print(r, func(w *tabular) { requestFields(w, r) }); err != nil {
					return err
				}
				if r.State == api.RequestPending {
					a.next("hallpass review approve %s --hash %s   or   review deny", r.ID, r.Hash)
				}
				return nil
			})
		},
	}
}

// decideFlags are the flags of approve and deny, of requests and of changes.
type decideFlags struct {
	hash    string
	comment string
	yes     bool
}

func (f *decideFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.hash, "hash", "", "decide on exactly what was shown with this `hash`; asks nothing")
	cmd.Flags().StringVar(&f.comment, "comment", "", "a word to the requester and the audit log")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "decide on it as it is now, without asking")
}

// confirm shows what is decided on and returns its hash. A person on a terminal is asked. A
// script has decided by calling: what it decided on is shown all the same, and the hash is that
// of what was shown, so that a request narrowed in between is refused by the cluster.
func (f *decideFlags) confirm(a *app, question, current string, show func(w *tabular)) (string, error) {
	if f.hash != "" {
		return f.hash, nil
	}
	w := &tabular{now: a.now()}
	show(w)
	w.flush()
	fmt.Fprintf(a.stderr, "%s\n", &w.out)
	if f.yes || !isTerminal(a.stdin) {
		return current, nil
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); err != nil || answer != "y" && answer != "yes" {
		return "", fmt.Errorf("nothing decided")
	}
	return current, nil
}

func (a *app) newReviewApprove() *cobra.Command {
	var f decideFlags
	var only []string
	var length time.Duration
	cmd := &cobra.Command{
		Use:   "approve ID",
		Short: "Approve a request, or a narrower form of it",
		Long: `Approve a request. --only and --for approve less than was asked: fewer or
narrower permissions, a shorter time; never more.

The decision is on exactly what was shown: it names the request's hash, and is
refused if the request has changed since.`,
		Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.DecisionInput{Decision: "approve", Comment: f.comment, Permissions: only, Duration: api.Duration(length)}
			for _, text := range only {
				if _, err := grant.ParsePermission(text); err != nil {
					return usagef("--only: %w", err)
				}
			}
			return a.decide(cmd.Context(), args[0], f, in)
		},
	}
	f.add(cmd)
	cmd.Flags().StringArrayVar(&only, "only", nil, "narrow it to this `permission`; repeat for more")
	cmd.Flags().DurationVar(&length, "for", 0, "shorten it to this")
	return cmd
}

func (a *app) newReviewDeny() *cobra.Command {
	var f decideFlags
	cmd := &cobra.Command{
		Use:   "deny ID",
		Short: "Deny a request",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.decide(cmd.Context(), args[0], f, api.DecisionInput{Decision: "deny", Comment: f.comment})
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) decide(ctx context.Context, id string, f decideFlags, in api.DecisionInput) error {
	return a.call(ctx, func(ctx context.Context, c *api.Client) error {
		shown, err := c.Request(ctx, id)
		if err != nil {
			return err
		}
		question := map[string]string{"approve": "Approve this?", "deny": "Deny this?"}[in.Decision]
		if in.Hash, err = f.confirm(a, question, shown.Hash, func(w *tabular) { requestFields(w, shown) }); err != nil {
			return err
		}
		r, err := c.DecideRequest(ctx, id, in)
		if err != nil {
			return err
		}
		return a.print(r, func(w *tabular) { requestFields(w, r) })
	})
}
