package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newClusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "The control plane and its nodes: look, add, replace, remove, recover",
		Long: `The control plane and its nodes. All but status is for admins, and is in the
audit log; recover is for who has a stopped node's disk.

A new node: sign its request (ca sign-node --add), adopt the manifest, start the
node with that manifest, join, promote. One that was lost: remove. Nothing else is
restarted. A change after which no quorum could be reached is refused.`,
	}
	cmd.AddCommand(a.newClusterStatus(), a.newClusterAdopt(),
		a.newClusterNode("join NODE", "Send a known node the log, without giving it a vote yet",
			"promote it once it has caught up: hallpass cluster promote %s", (*api.Client).JoinNode),
		a.newClusterPromote(), a.newClusterRemove(),
		a.newClusterNode("transfer-leader NODE", "Have this node lead", "", (*api.Client).HandOver),
		a.newClusterRecover())
	return cmd
}

func (a *app) newClusterStatus() *cobra.Command {
	var stale bool
	show := &cobra.Command{
		Use:   "status",
		Short: "Nodes, leader, issuers, blocked subjects",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				var opts []api.CallOption
				if stale {
					opts = append(opts, api.Stale())
				}
				cl, err := c.Cluster(ctx, opts...)
				if err != nil {
					return err
				}
				return a.print(cl, func(w *tabular) { clusterTable(w, cl) })
			})
		},
	}
	show.Flags().BoolVar(&stale, "stale", false, "take one node's own word, without asking the leader")
	return show
}

func (a *app) newClusterAdopt() *cobra.Command {
	return &cobra.Command{
		Use:   "adopt MANIFEST",
		Short: "Have the cluster take a newer manifest: new nodes, addresses, issuers",
		Long: `Have the cluster take a newer manifest that ca sign-node wrote: nodes that are to
join, and new addresses and issuers of those that are there. What makes it good is
an identity root's signature and a sequence number above the newest one's. It
removes no node and exchanges no node's keys: see cluster remove.`,
		Args: exactArgs("MANIFEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				cl, err := c.AdoptManifest(ctx, string(text))
				if err != nil {
					return err
				}
				for _, n := range cl.Nodes {
					if n.Role == api.NodeUnjoined {
						a.next("start %s with this manifest, then: hallpass cluster join %s", n.ID, n.ID)
					}
				}
				return a.print(cl, func(w *tabular) { clusterTable(w, cl) })
			})
		},
	}
}

// newClusterNode is a command that needs nothing but the node.
func (a *app) newClusterNode(use, short, next string,
	do func(c *api.Client, ctx context.Context, id string, opts ...api.CallOption) (api.Node, error),
) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				n, err := do(c, ctx, args[0])
				if err != nil {
					return err
				}
				if next != "" {
					a.next(next, n.ID)
				}
				return a.printNode(n)
			})
		},
	}
}

func (a *app) newClusterPromote() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "promote NODE",
		Short: "Give a node a vote once it has caught up",
		Args:  exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.timeout = max(a.timeout, wait) // until then the answer is to try again, which the client does
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				n, err := c.PromoteNode(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printNode(n)
			})
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "how long it may take to catch up")
	return cmd
}

func (a *app) newClusterRemove() *cobra.Command {
	var in api.RemoveNodeInput
	cmd := &cobra.Command{
		Use:   "remove NODE --reason TEXT",
		Short: "Take a node out of the cluster, and its issuers out of use",
		Long: `Take a node out of the cluster. No other node talks to it from then on, and its
issuers are on the revocation feed: nobody knows in whose hands its keys are.
Identities that it signed stop working, so have services' issued anew.

Where the node's keys were destroyed, say --retired: what its issuers signed then
stays good until it ends.

While the node that leads lacks entries of the audit log, none is removed: it may be
the only one that has them. If it never comes back, say --without-audit-entries.`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Reason == "" {
				return usagef("no reason given: --reason 'why'")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				n, err := c.RemoveNode(ctx, args[0], in)
				if err != nil {
					return err
				}
				if !in.Retired {
					a.next("have services whose identities %s signed get new ones", n.ID)
				}
				return a.printNode(n)
			})
		},
	}
	cmd.Flags().StringVar(&in.Reason, "reason", "", "why, for the audit log")
	cmd.Flags().BoolVar(&in.Retired, "retired", false, "its keys were destroyed: what its issuers signed stays good")
	cmd.Flags().BoolVar(&in.WithoutAuditEntries, "without-audit-entries", false, "even if it alone has entries of the audit log: they are lost")
	return cmd
}

func (a *app) printNode(n api.Node) error {
	return a.print(n, func(w *tabular) {
		w.field("node", n.ID)
		w.field("role", nodeRole(n))
		w.field("api", n.APIAddress)
		w.field("raft", n.RaftAddress)
	})
}

// nodeRole says what a node is, in a word or two.
func nodeRole(n api.Node) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Role == api.NodeUnjoined:
		return "not joined"
	case n.Role == "voter":
		return "follower"
	}
	return n.Role
}

func clusterTable(w *tabular, cl api.Cluster) {
	w.field("cluster", cl.ID)
	w.field("trust domain", cl.TrustDomain)
	w.field("grants", cl.GrantTrustDomain)
	w.field("manifest", strconv.FormatUint(cl.Manifest, 10))
	epoch := strconv.FormatUint(cl.Epoch, 10)
	if cl.EpochBegan != nil {
		epoch += ", since " + cl.EpochBegan.UTC().Format(time.RFC3339) + ": what was asked for before has ended"
	}
	w.field("epoch", epoch)
	w.field("leader", orNone(cl.Leader))
	w.field("term", strconv.FormatUint(cl.Term, 10))
	w.field("index", strconv.FormatUint(cl.Index, 10))
	w.field("answered by", cl.Node)
	w.line("")
	w.row("NODE", "ROLE", "HEARD", "BEHIND", "API", "RAFT")
	for _, n := range cl.Nodes {
		w.row(n.ID, nodeRole(n), heard(cl, n), behind(n), n.APIAddress, n.RaftAddress)
	}
	w.line("")
	w.row("ISSUER", "NODE", "ROLE", "UNTIL", "")
	for _, i := range cl.Issuers {
		denied := ""
		if i.Denied != nil {
			denied = "denied"
		}
		w.row(i.ID, i.Node, i.Role, w.when(i.NotAfter), denied)
	}
	if len(cl.Blocked) > 0 {
		w.line("")
		w.row("BLOCKED", "BY", "REASON")
		for _, b := range cl.Blocked {
			w.row(b.Subject, b.By, b.Reason)
		}
	}
}

// heard says when the leader last heard a node.
func heard(cl api.Cluster, n api.Node) string {
	switch {
	case n.Leader || n.Role == api.NodeUnjoined:
		return "-"
	case n.SilentFor != nil:
		return fmt.Sprintf("%s ago", time.Duration(*n.SilentFor).Round(10*time.Millisecond))
	case cl.Node == cl.Leader:
		return "never"
	}
	return "?" // the node that answered does not lead
}

// behind says how many entries of the log a node lacks.
func behind(n api.Node) string {
	if n.Behind == nil {
		return "-"
	}
	return strconv.FormatUint(*n.Behind, 10)
}
