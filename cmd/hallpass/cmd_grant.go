package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

func (a *app) newGrantCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grant",
		Short: "Use what was approved: list, cert, revoke",
	}
	cmd.AddCommand(a.newGrantList(), a.newGrantShow(), a.newGrantDelegate(), a.newGrantCert(), a.newGrantRevoke())
	return cmd
}

func (a *app) newGrantList() *cobra.Command {
	var f api.Filter
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the grants that you may see, newest first",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				list, err := c.Grants(ctx, f)
				for err == nil && all && list.Next != "" {
					f.Cursor = list.Next
					var more api.GrantList
					more, err = c.Grants(ctx, f)
					list.Grants, list.Next = append(list.Grants, more.Grants...), more.Next
				}
				if err != nil {
					return err
				}
				return a.print(list, func(w *tabular) {
					grantRows(w, list.Grants)
					more(w, list.Next)
				})
			})
		},
	}
	addFilter(cmd, &f, &all)
	return cmd
}

func grantRows(w *tabular, grants []api.Grant) {
	w.row("ID", "STATE", "SUBJECT", "SERVICE", "MAY", "UNTIL", "")
	for _, g := range grants {
		w.row(g.ID, g.State, g.Subject, g.Service, brief(g.Permissions), w.when(g.ExpiresAt), emergencyNote(g))
	}
}

// emergencyNote sets grants apart that nobody decided on here.
func emergencyNote(g api.Grant) string {
	if g.Emergency == nil {
		return ""
	}
	return "emergency"
}

func (a *app) newGrantShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show a grant and the certificates minted for it",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				g, err := c.Grant(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(g, func(w *tabular) { grantFields(w, g) })
			})
		},
	}
}

// certificateFiles is the answer of the commands that write a folder.
type certificateFiles struct {
	api.Certificate
	Folder string `json:"folder"`
}

func (a *app) newGrantCert() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "cert ID",
		Short: "Get a certificate for your grant, or renew it",
		Long: `Get a certificate for your grant, as a folder that curl and every TLS client
can use: cert.pem, key.pem (made here, readable by you alone),
identity-bundle.pem (whom to trust as the service) and grants-bundle.pem.

Run it again with the same --out to renew: the key stays.`,
		Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := folder(out)
			if out == "" {
				dir = folder("grant-" + args[0])
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.fetchGrant(ctx, c, args[0], dir)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`folder` to write (default ./grant-ID)")
	return cmd
}

func (a *app) fetchGrant(ctx context.Context, c *api.Client, id string, dir folder) error {
	g, err := c.Grant(ctx, id)
	if err != nil {
		return a.explainNoGrant(ctx, c, id, err)
	}
	if err := dir.claim(g.SPIFFEID); err != nil {
		return err
	}
	csr, err := dir.csr()
	if err != nil {
		return err
	}
	cert, err := c.GrantCertificate(ctx, id, csr)
	if err != nil {
		return err
	}
	if err := a.fillFolder(ctx, c, dir, cert); err != nil {
		return err
	}
	a.next("curl --cert %[1]s --key %[2]s --cacert %[3]s https://%[4]s…", dir.file(ca.FolderChain),
		dir.file(ca.FolderKey), dir.file(ca.FolderIdentityBundle), g.Service)
	return nil
}

// fillFolder writes a certificate and both bundles, and prints what it wrote.
func (a *app) fillFolder(ctx context.Context, c *api.Client, dir folder, cert api.Certificate) error {
	bundle, err := c.Bundle(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(dir.write(ca.FolderIdentityBundle, bundle.IdentityRoots),
		dir.write(ca.FolderGrantsBundle, bundle.GrantRoots),
		dir.write(ca.FolderChain, cert.Certificate))
	if err != nil {
		return err
	}
	issued := certificateFiles{cert, string(dir)}
	return a.print(issued, func(w *tabular) { issuedFields(w, issued) })
}

func issuedFields(w *tabular, c certificateFiles) {
	w.field("folder", c.Folder)
	w.field("name", c.SPIFFEID)
	w.field("serial", c.Serial)
	w.field("until", w.when(c.NotAfter))
	w.field("renew", w.when(c.RenewAfter))
}

// explainNoGrant turns "no such grant" into what the request of that id is waiting for.
func (a *app) explainNoGrant(ctx context.Context, c *api.Client, id string, err error) error {
	if !errors.Is(err, api.ErrNotFound) {
		return err
	}
	r, rerr := c.Request(ctx, id)
	switch {
	case rerr != nil:
		return err
	case r.State == api.RequestPending:
		return pendingf("request %s is still pending: it needs %s", r.ID, waitsFor(r, " and "))
	case r.State == api.RequestApproved:
		return err
	default:
		return deniedf("request %s is %s", r.ID, r.State)
	}
}

func (a *app) newGrantRevoke() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID [--reason TEXT]",
		Short: "End a grant now: its connections are cut, no certificate is minted again",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				g, err := c.RevokeGrant(ctx, args[0], reason)
				if err != nil {
					return err
				}
				return a.print(g, func(w *tabular) { grantFields(w, g) })
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why (your own grant needs none)")
	return cmd
}

func (a *app) newSubjectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "subject",
		Short: "Block a subject at once, or propose to let it in again",
	}
	var reason string
	block := &cobra.Command{
		Use:   "block SPIFFE-ID --reason TEXT",
		Short: "End all of a subject's grants and let none be made",
		Args:  exactArgs("SPIFFE-ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("no reason given: --reason 'why'")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				b, err := c.BlockSubject(ctx, api.BlockInput{Subject: args[0], Reason: reason})
				if err != nil {
					return err
				}
				return a.print(b, func(w *tabular) { w.line("%s is blocked: %s", b.Subject, b.Reason) })
			})
		},
	}
	block.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	unblock := &cobra.Command{
		Use:   "unblock SPIFFE-ID",
		Short: "Propose to let a blocked subject ask again; two other admins approve",
		Args:  exactArgs("SPIFFE-ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.propose(cmd.Context(), api.ChangeSpec{Kind: api.ChangeSubjectUnblock, Subject: args[0]}, 0)
		},
	}
	cmd.AddCommand(block, unblock)
	return cmd
}
