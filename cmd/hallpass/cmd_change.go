package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newChangeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "change",
		Short: "Decide on changes of policy, groups and persons: list, show, approve, deny, cancel",
	}
	cmd.AddCommand(a.newChangeList(), a.newChangeShow(),
		a.newChangeDecide("approve", "Approve a change; the second admin's approval applies it"),
		a.newChangeDecide("deny", "Deny a change"),
		a.newChangeCancel())
	return cmd
}

func (a *app) newChangeList() *cobra.Command {
	var state string
	var page api.Page
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List changes, newest first",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				list, err := c.Changes(ctx, state, page)
				if err != nil {
					return err
				}
				return a.print(list, func(w *tabular) {
					w.row("ID", "STATE", "AUTHOR", "WOULD", "NAME", "APPROVALS")
					for _, ch := range list.Changes {
						w.row(ch.ID, ch.State, ch.AuthorPerson, ch.Change.Kind, ch.Change.Name+ch.Change.Subject,
							strconv.Itoa(ch.Approvals)+" of "+strconv.Itoa(ch.Needed))
					}
					if list.Next != "" {
						w.line("there are more: a larger --limit")
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().IntVar(&page.Limit, "limit", 50, "at most so many")
	return cmd
}

func (a *app) newChangeShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show all of a change, with the hash that a decision names",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				ch, err := c.Change(ctx, args[0])
				if err != nil {
					return err
				}
				if err := a.print(ch, func(w *tabular) { changeFields(w, ch) }); err != nil {
					return err
				}
				if ch.State == api.ChangePending {
					a.next("hallpass change approve %s --hash %s   or   change deny", ch.ID, ch.Hash)
				}
				return nil
			})
		},
	}
}

func (a *app) newChangeDecide(decision, about string) *cobra.Command {
	var f decideFlags
	cmd := &cobra.Command{
		Use:   decision + " ID",
		Short: about,
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				shown, err := c.Change(ctx, args[0])
				if err != nil {
					return err
				}
				question := map[string]string{"approve": "Approve this?", "deny": "Deny this?"}[decision]
				hash, err := f.confirm(a, question, shown.Hash, func(w *tabular) { changeFields(w, shown) })
				if err != nil {
					return err
				}
				in := api.ChangeDecisionInput{Decision: decision, Hash: hash, Comment: f.comment}
				ch, err := c.DecideChange(ctx, args[0], in)
				if err != nil {
					return err
				}
				return a.print(ch, func(w *tabular) { changeFields(w, ch) })
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) newChangeCancel() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Withdraw a change that is still pending",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				ch, err := c.CancelChange(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(ch, func(w *tabular) { changeFields(w, ch) })
			})
		},
	}
}
