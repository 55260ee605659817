package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newRequestReturn() *cobra.Command {
	return &cobra.Command{
		Use:   "return ID",
		Short: "Give back what was granted to you, before it ends",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				g, err := c.RevokeGrant(ctx, args[0], "") // without a reason it is one's own, or refused
				if err != nil {
					return err
				}
				return a.print(g, func(w *tabular) { grantFields(w, g) })
			})
		},
	}
}
