package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

func (a *app) newNotifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "notify",
		Short: "Who is told what happens: list, dead letters, replay, test; for admins",
		Long: `Who is told what happens: webhooks, mail, chat and pagers that the nodes'
configuration names. See docs/notify.md.`,
	}
	cmd.AddCommand(a.newNotifyList(), a.newNotifyDead(), a.newNotifyReplay(), a.newNotifyTest(), a.newNotifyForget())
	return cmd
}

func (a *app) newNotifyList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "The targets, and how far each is",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				all, err := c.NotifyTargets(ctx)
				if err != nil {
					return err
				}
				if len(all.Targets)+len(all.Missing) == 0 {
					a.next("no target is configured: notify.targets in server.yaml, as docs/notify.md says")
				}
				return a.print(all, func(w *tabular) {
					w.row("TARGET", "KIND", "HOST", "SENT", "OPEN", "DEAD", "STATE")
					for _, t := range all.Targets {
						w.row(t.Name, t.Kind, t.Host, strconv.FormatUint(t.Sent, 10), strconv.Itoa(len(t.Open)), strconv.FormatUint(t.Dead, 10), targetState(t))
					}
					for _, name := range all.Missing {
						w.row(name, "", "", "0", "0", "0", "the policy names it, and it is not in the answering node's configuration: nobody is told")
					}
				})
			})
		},
	}
}

// targetState says in a few words how a target is.
func targetState(t api.NotifyTarget) string {
	for _, o := range t.Open {
		if o.Tries > 0 && t.PausedAt == nil {
			return fmt.Sprintf("entry %d failed %d times: %s", o.Entry, o.Tries, o.Cause)
		}
	}
	switch {
	case t.PausedAt != nil:
		return "paused: " + t.Cause
	case !t.Configured:
		return "not in the answering node's configuration"
	}
	return "ok"
}

func (a *app) newNotifyDead() *cobra.Command {
	return &cobra.Command{
		Use:   "dead [TARGET]",
		Short: "Notifications that were given up, with why",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: want one TARGET or none", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				all, err := c.DeadLetters(ctx, strings.Join(args, ""))
				if err != nil {
					return err
				}
				return a.print(all, func(w *tabular) {
					w.row("TARGET", "ENTRY", "KIND", "ABOUT", "GIVEN UP", "TRIES", "CAUSE")
					for _, l := range all.Letters {
						w.row(l.Target, strconv.FormatUint(l.Entry, 10), l.Kind, l.Object, w.when(l.At), strconv.FormatUint(l.Tries, 10), l.Cause)
					}
				})
			})
		},
	}
}

func (a *app) newNotifyReplay() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "replay TARGET [ENTRY...]",
		Short: "Send dead letters again, and go on with a paused target",
		Long: `Send dead letters again, under the ids that they had: a receiver that has one
after all does nothing. ENTRY is the number that notify dead prints; --all takes
all of them. A target that is paused, since it said that it wants no more, goes
on where it stood; to have it begin anew at the end of the log, forget it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: no TARGET given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.ReplayInput{All: all}
			for _, text := range args[1:] {
				entry, err := strconv.ParseUint(text, 10, 48)
				if err != nil {
					return usagef("%q is no ENTRY: want a number, as notify dead prints it", text)
				}
				in.Entries = append(in.Entries, entry)
			}
			if all && len(in.Entries) > 0 {
				return usagef("--all and entries besides: give one of them")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				t, err := c.ReplayNotifications(ctx, args[0], in)
				if err != nil {
					return err
				}
				return a.print(t, func(w *tabular) {
					w.line("%s: %d on their way, %d dead letters left", t.Name, len(t.Open), t.Dead)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all dead letters of the target")
	return cmd
}

// errNotDelivered is returned for a test message that did not arrive.
var errNotDelivered = errors.New("the test message was not delivered")

func (a *app) newNotifyTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test TARGET",
		Short: "Send a message that says nothing, now",
		Args:  exactArgs("TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				t, err := c.TestTarget(ctx, args[0])
				if err != nil {
					return err
				}
				if !t.Delivered {
					return fmt.Errorf("%s: %w: %s", t.Target, errNotDelivered, t.Cause)
				}
				return a.print(t, func(w *tabular) {
					w.line("%s has the test message %s, after %d ms", t.Target, t.Delivery, t.TookMS)
				})
			})
		},
	}
}

func (a *app) newNotifyForget() *cobra.Command {
	return &cobra.Command{
		Use:   "forget TARGET",
		Short: "Forget a target, with what is on its way and its dead letters",
		Long: `Forget a target, with what is on its way to it and its dead letters. One that is
still in the configuration begins anew, and is told of what happens from now on.`,
		Args: exactArgs("TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				t, err := c.ForgetTarget(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(t, func(w *tabular) {
					w.line("%s is forgotten", t.Name)
				})
			})
		},
	}
}
