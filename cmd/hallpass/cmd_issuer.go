package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

func (a *app) newIssuerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issuer",
		Short: "What nodes sign with: put successors in use, take a stolen node's out of use",
	}
	cmd.AddCommand(a.newIssuerInstall(), a.newIssuerDeny())
	return cmd
}

func (a *app) newIssuerDeny() *cobra.Command {
	var reason string
	deny := &cobra.Command{
		Use:   "deny ISSUER-ID --reason TEXT",
		Short: "Nobody believes this issuer any more (`cluster status` lists them)",
		Args:  exactArgs("ISSUER-ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("no reason given: --reason 'why'")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				i, err := c.DenyIssuer(ctx, args[0], reason)
				if err != nil {
					return err
				}
				return a.print(i, func(w *tabular) {
					w.line("%s", fmt.Sprintf("issuer %s of node %s is denied", i.ID, i.Node))
				})
			})
		},
	}
	deny.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return deny
}

func (a *app) newIssuerInstall() *cobra.Command {
	return &cobra.Command{
		Use:   "install FILE...",
		Short: "Give running nodes the certificates that `ca sign-node --renew` signed",
		Long: `Give running nodes the certificates that ca sign-node --renew signed. Nothing is
restarted: the cluster records the new issuers, and the nodes sign with them from
then on. The old ones end by themselves.

A node whose API certificate has ended already cannot be called: put the file
into its key folder, with server install.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: no FILE given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.installIssuers(ctx, c, args)
			})
		},
	}
}

func (a *app) installIssuers(ctx context.Context, c *api.Client, files []string) error {
	all := make([]ca.NodeCertificates, 0, len(files))
	for _, file := range files {
		certs, err := ca.LoadNodeCertificates(file)
		if err != nil {
			return err
		}
		all = append(all, certs)
	}
	var done []api.Installed
	for _, certs := range all {
		out, err := c.InstallIssuers(ctx, installInput(certs))
		if err != nil {
			return fmt.Errorf("node %s: %w", certs.Node, err)
		}
		done = append(done, out)
	}
	return a.print(done, func(w *tabular) {
		w.row("NODE", "NEW ISSUERS")
		for _, d := range done {
			w.row(d.Node, cmp.Or(strings.Join(d.Issuers, " "), "none: it has them"))
		}
	})
}

func installInput(c ca.NodeCertificates) api.InstallInput {
	return api.InstallInput{
		Node:           c.Node,
		IdentityIssuer: string(ca.EncodeCertificates(c.IdentityIssuer)),
		GrantIssuer:    string(ca.EncodeCertificates(c.GrantIssuer)),
		APICertificate: string(ca.EncodeCertificates(c.APICertificate)),
	}
}

// newServerInstall is `server install`, for a node that cannot be called.
func newServerInstall(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "install FILE --dir FOLDER",
		Short: "Put a node's new certificates into its key folder, where the running node finds them",
		Args:  exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if dir == "" {
				return usagef("no folder given: --dir FOLDER")
			}
			certs, err := ca.LoadNodeCertificates(args[0])
			if err != nil {
				return err
			}
			if err := ca.InstallCertificates(dir, certs); err != nil {
				return err
			}
			return a.print(map[string]any{"node": certs.Node, "folder": dir, "not_after": certs.NotAfter()}, func(w *tabular) {
				w.field("node", certs.Node)
				w.field("folder", dir)
				w.field("until", w.when(certs.NotAfter()))
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the node's key `folder`")
	return cmd
}
