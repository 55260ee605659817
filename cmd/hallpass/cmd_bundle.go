package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

func (a *app) newBundleCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bundle", Short: "The roots of both trust domains: show, publish a change, follow it"}
	cmd.AddCommand(a.newBundleShow(), a.newBundlePublish(), a.newBundleFollow())
	return cmd
}

func (a *app) newBundleShow() *cobra.Command {
	var out string
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the roots in force, or write them to a folder",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.showBundle(ctx, c, out) })
		},
	}
	show.Flags().StringVar(&out, "out", "", "write identity-bundle.pem and grants-bundle.pem to this `folder`")
	return show
}

func (a *app) showBundle(ctx context.Context, c *api.Client, out string) error {
	b, err := c.Bundle(ctx)
	if err != nil {
		return err
	}
	if out != "" {
		if err := os.MkdirAll(out, 0o700); err != nil {
			return err
		}
		err := errors.Join(folder(out).write(ca.FolderIdentityBundle, b.IdentityRoots), folder(out).write(ca.FolderGrantsBundle, b.GrantRoots))
		if err != nil {
			return err
		}
	}
	return a.print(b, func(w *tabular) {
		w.field("identities", b.TrustDomain)
		w.field("", b.IdentityRoots)
		w.field("grants", b.GrantTrustDomain)
		w.field("", b.GrantRoots)
	})
}

// rootsState is what `bundle publish` and `bundle follow` answer, for each trust domain.
type rootsState struct {
	TrustDomain string   `json:"trust_domain"`
	Sequence    uint64   `json:"sequence"`
	Roots       []string `json:"roots"` // ids
}

func stateOf(s trust.Set) rootsState {
	out := rootsState{TrustDomain: s.TrustDomain(), Sequence: s.Sequence(), Roots: []string{}}
	for _, root := range s.Roots() {
		out.Roots = append(out.Roots, trust.ID(root))
	}
	return out
}

func (a *app) printRoots(states []rootsState) error {
	return a.print(states, func(w *tabular) {
		w.row("TRUST DOMAIN", "DOCUMENT", "ROOTS IN FORCE")
		for _, s := range states {
			w.row(s.TrustDomain, strconv.FormatUint(s.Sequence, 10), strings.Join(s.Roots, " "))
		}
	})
}

func (a *app) newBundlePublish() *cobra.Command {
	return &cobra.Command{
		Use:   "publish FILE",
		Short: "Put the roots documents of `ca rotate` or `ca retire` in force",
		Long: `Put the roots documents of ca rotate or ca retire in force: FILE is the
roots.jsonl of the folder of ca init. Nodes take them in at once, and proxies as
they hear of them. Documents that are in force already change nothing.

Takes an admin, and the signature of a root in force.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			documents, err := trust.ParseAll(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if len(documents) == 0 {
				return fmt.Errorf("%s holds no roots document: ca rotate and ca retire make them", args[0])
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.publish(ctx, c, documents)
			})
		},
	}
}

func (a *app) publish(ctx context.Context, c *api.Client, documents []trust.Document) error {
	have, err := c.Roots(ctx)
	if err != nil {
		return err
	}
	sets := []api.RootSet{have.Identity, have.Grants}
	for _, d := range documents {
		i := slices.IndexFunc(sets, func(s api.RootSet) bool { return s.TrustDomain == d.TrustDomain })
		if i >= 0 && d.Sequence <= sets[i].Sequence {
			continue
		}
		line, err := d.Encode()
		if err != nil {
			return err
		}
		set, err := c.SetRoots(ctx, string(line))
		if err != nil {
			return fmt.Errorf("document %d of %s: %w", d.Sequence, d.TrustDomain, err)
		}
		if i >= 0 { // what the leader says of it: to ask again could be to ask a node that has not heard
			sets[i] = set
		}
	}
	states := make([]rootsState, 0, len(sets))
	for _, r := range sets {
		roots, err := ca.DecodeCertificates([]byte(r.Roots))
		if err != nil {
			return err
		}
		s := stateOf(trust.NewSet(r.TrustDomain, roots))
		s.Sequence = r.Sequence
		states = append(states, s)
	}
	a.next("wait until every proxy follows: /readyz of its admin port says which documents are in force there")
	return a.printRoots(states)
}

func (a *app) newBundleFollow() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "follow [--dir FOLDER]",
		Short: "Bring the bundles of an identity folder up to date",
		Long: `Bring identity-bundle.pem and grants-bundle.pem of an identity folder up to date,
as proxies do by themselves: a root is added or taken away only by a document
that one of the folder's own roots has signed.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				dir = a.identity
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.follow(ctx, c, folder(dir)) })
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`folder` (default: --identity)")
	return cmd
}

func (a *app) follow(ctx context.Context, c *api.Client, dir folder) error {
	served, err := c.Roots(ctx)
	if err != nil {
		return err
	}
	var states []rootsState
	for _, r := range []struct {
		file string
		set  api.RootSet
	}{{ca.FolderIdentityBundle, served.Identity}, {ca.FolderGrantsBundle, served.Grants}} {
		text, err := os.ReadFile(dir.file(r.file))
		if err != nil {
			return err
		}
		anchors, err := ca.DecodeCertificates(text)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.file(r.file), err)
		}
		s, err := followFrom(r.set, anchors)
		if err != nil {
			return fmt.Errorf("%s: %w", dir.file(r.file), err)
		}
		if err := dir.write(r.file, string(ca.EncodeCertificates(s.Roots()...))); err != nil {
			return err
		}
		states = append(states, stateOf(s))
	}
	return a.printRoots(states)
}

// followFrom follows a node's documents from roots that are trusted.
func followFrom(served api.RootSet, anchors []*x509.Certificate) (trust.Set, error) {
	documents, err := trust.ParseAll([]byte(strings.Join(served.Documents, "\n")))
	if err != nil {
		return trust.Set{}, err
	}
	s, behind := trust.NewSet(served.TrustDomain, anchors).Follow(documents)
	if behind {
		return s, fmt.Errorf("%w: the newest document of %s: get the new roots from where the roots are", trust.ErrUnsigned, served.TrustDomain)
	}
	return s, nil
}
