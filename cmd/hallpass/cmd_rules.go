package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

// addBase adds --base. Without it a change is written against what is in force right now.
func addBase(cmd *cobra.Command, base *uint64) {
	cmd.Flags().Uint64Var(base, "base", 0, "`revision` that it was written against (default: the one in force)")
}

func (a *app) newGroupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "group",
		Short: "Groups of persons: list, set, delete, stand-in",
	}
	var members, substitutes []string
	var turns turnFlags
	var base uint64
	list := &cobra.Command{
		Use:   "list",
		Short: "List the groups and their members",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				g, err := c.Groups(ctx)
				if err != nil {
					return err
				}
				return a.print(g, func(w *tabular) {
					w.row("GROUP", "MEMBERS", "IN IT NOW", "UNTIL", "SUBSTITUTES", "AWAY")
					for _, group := range g.Groups {
						until := ""
						if group.Until != nil {
							until = w.when(*group.Until)
						}
						w.row(group.Name, strings.Join(group.Members, ", "), inItNow(group), until, strings.Join(group.Substitutes, ", "), strings.Join(away(w, group), ", "))
					}
				})
			})
		},
	}
	set := &cobra.Command{
		Use:   "set NAME --member PERSON [--member …] [--substitute PERSON …]",
		Short: "Propose a group with exactly these members, all in it or by turns, and these substitutes",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			onCall, err := turns.onCall(cmd)
			if err != nil {
				return err
			}
			spec := api.ChangeSpec{Kind: api.ChangeGroupSet, Name: args[0], Members: members, OnCall: onCall, Substitutes: substitutes}
			return a.propose(cmd.Context(), spec, base)
		},
	}
	set.Flags().StringArrayVar(&members, "member", nil, "name of a `person`; repeat for more")
	turns.add(set)
	set.Flags().StringArrayVar(&substitutes, "substitute", nil, "name of a `person` who may stand in for members; repeat for more (default nobody)")
	remove := &cobra.Command{
		Use:   "delete NAME",
		Short: "Propose to delete a group",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.propose(cmd.Context(), api.ChangeSpec{Kind: api.ChangeGroupDelete, Name: args[0]}, base)
		},
	}
	addBase(set, &base)
	addBase(remove, &base)
	cmd.AddCommand(list, set, remove, a.newStandInCommand())
	return cmd
}

func (a *app) newPersonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "person",
		Short: "Who is behind which SPIFFE IDs: list, set, delete",
	}
	var ids, owns []string
	var account string
	var base uint64
	list := &cobra.Command{
		Use:   "list",
		Short: "List the persons",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				p, err := c.Persons(ctx)
				if err != nil {
					return err
				}
				return a.print(p, func(w *tabular) {
					w.row("PERSON", "IDS", "ANSWERS FOR", "GROUPS", "SLACK")
					for _, person := range p.Persons {
						w.row(person.Name, strings.Join(person.IDs, ", "), strings.Join(person.Owns, ", "), strings.Join(person.Groups, ", "), person.Slack)
					}
				})
			})
		},
	}
	set := &cobra.Command{
		Use:   "set NAME --id SPIFFE-ID [--id …] [--owns SPIFFE-ID …] [--slack TEAM/USER]",
		Short: "Propose a person with exactly these identities and this Slack account",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec := api.ChangeSpec{Kind: api.ChangePersonSet, Name: args[0], IDs: ids, Owns: owns, Slack: account}
			return a.propose(cmd.Context(), spec, base)
		},
	}
	set.Flags().StringArrayVar(&ids, "id", nil, "SPIFFE `ID` that is this person; repeat for more")
	set.Flags().StringArrayVar(&owns, "owns", nil, "SPIFFE `ID` or pattern of a workload that this person answers for; repeat for more")
	set.Flags().StringVar(&account, "slack", "", "Slack `account`, TEAM/USER by their ids, that may decide for this person where the policy lets it (default none)")
	remove := &cobra.Command{
		Use:   "delete NAME",
		Short: "Propose to delete a person",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.propose(cmd.Context(), api.ChangeSpec{Kind: api.ChangePersonDelete, Name: args[0]}, base)
		},
	}
	addBase(set, &base)
	addBase(remove, &base)
	cmd.AddCommand(list, set, remove)
	return cmd
}

// propose proposes a change written against revision base, or, when that is 0, against what is
// in force now.
func (a *app) propose(ctx context.Context, spec api.ChangeSpec, base uint64) error {
	return a.call(ctx, func(ctx context.Context, c *api.Client) error {
		if base == 0 {
			var err error
			if base, err = revisionOf(ctx, c, spec.Kind); err != nil {
				return err
			}
		}
		ch, err := c.ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: base})
		if err != nil {
			return err
		}
		if err := a.print(ch, func(w *tabular) { changeFields(w, ch) }); err != nil {
			return err
		}
		if ch.State == api.ChangePending {
			a.next("two other admins run: hallpass change show %s", ch.ID)
		}
		return nil
	})
}

// revisionOf returns the revision that a change of this kind is checked against.
func revisionOf(ctx context.Context, c *api.Client, kind string) (uint64, error) {
	if kind == api.ChangePolicySet {
		p, err := c.Policy(ctx)
		return p.Revision, err
	}
	g, err := c.Groups(ctx)
	return g.Revision, err
}
