package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// completionLimit is how long a shell waits for the names that a word may become.
const completionLimit = 5 * time.Second

func (a *app) newRequestSearch() *cobra.Command {
	var f api.ServiceFilter
	var all bool
	cmd := &cobra.Command{
		Use:   "search [WORDS]",
		Short: "Find what you may ask for: services, and bundles of their permissions",
		Long: `Find what you may ask for: the services at which a rule lets you ask, and bundles
of their permissions to ask for by name. Words are looked for in names,
descriptions, tiers, labels (team=money), owners, bundles and permissions; each
must be found, in any case. A service that is the only one is shown whole.

An offer is not a promise: a rule may have conditions, or want an approval. See
what comes of a request with hallpass request create --dry-run.`,
		Example: `  hallpass request search refunds
  hallpass request create payments --bundle refund --for 30m --reason 'ticket 4711'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.Query = strings.Join(args, " ")
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				list, err := c.Services(ctx, f)
				for ; err == nil && all && list.Next != ""; f.Cursor = "" {
					f.Cursor = list.Next
					var more api.ServiceList
					more, err = c.Services(ctx, f)
					list.Services, list.Next = append(list.Services, more.Services...), more.Next
				}
				if err != nil {
					return err
				}
				if err := a.print(list, func(w *tabular) { serviceRows(w, list) }); err != nil {
					return err
				}
				a.nextForServices(list, f.Query)
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&f.Limit, "limit", 50, "at most so many services")
	cmd.Flags().BoolVar(&all, "all", false, "every page")
	return cmd
}

func serviceRows(w *tabular, list api.ServiceList) {
	if len(list.Services) == 1 && list.Next == "" {
		serviceFields(w, list.Services[0])
		return
	}
	w.row("SERVICE", "BUNDLE", "ALLOWS", "WHAT IT IS")
	for _, s := range list.Services {
		w.row(s.Name, "", brief(s.Permissions), s.Description)
		for _, b := range s.Bundles {
			w.row(s.Name, b.Name, brief(b.Permissions), b.Description)
		}
	}
	more(w, list.Next)
}

// serviceFields writes all of a service.
func serviceFields(w *tabular, s api.Service) {
	w.field("service", s.Name)
	w.field("what it is", s.Description)
	w.field("tier", s.Tier)
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		w.field("label", key+"="+s.Labels[key])
	}
	w.field("owners", strings.Join(s.Owners, ", "))
	w.field("may ask for", strings.Join(s.Permissions, "\n"))
	for _, b := range s.Bundles {
		w.field("bundle", b.Name)
		w.field("", b.Description)
		for _, p := range b.Permissions {
			w.field("", "  "+p)
		}
	}
}

func (a *app) nextForServices(list api.ServiceList, query string) {
	for _, s := range list.Services {
		// What a stolen node calls a service would be pasted into a shell.
		if grant.ValidService(s.Name) != nil || len(s.Bundles) > 0 && policy.ValidName(s.Bundles[0].Name) != nil {
			return
		}
	}
	switch {
	case len(list.Services) == 0 && query == "":
		a.next("no rule lets you ask for anything: an admin has to propose one")
	case len(list.Services) == 0:
		a.next("nothing that you may ask for has all of these words: hallpass request search")
	case len(list.Services) > 1:
		a.next("hallpass request search %s", list.Services[0].Name)
	case len(list.Services[0].Bundles) > 0:
		a.next("hallpass request create %s --bundle %s --for 30m --reason 'why you need it'", list.Services[0].Name, list.Services[0].Bundles[0].Name)
	default:
		a.next("hallpass request create %s --allow '…' --for 30m --reason 'why you need it'", list.Services[0].Name)
	}
}

// offersNames has a shell complete the name of a service, and of bundles of it.
func (a *app) offersNames(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(cmd, func(s api.Service) []string { return []string{s.Name} }, typed, ""), cobra.ShellCompDirectiveNoFileComp
	}
	err := cmd.RegisterFlagCompletionFunc("bundle", func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(cmd, func(s api.Service) []string {
			var names []string
			for _, b := range s.Bundles {
				names = append(names, b.Name)
			}
			return names
		}, typed, args[0]), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag is not there: a mistake in this file
	}
}

// names are those in the catalogue that begin as what was typed; none when the cluster does not
// say soon. They are names and nothing else, each of which is looked at: shells of which some
// evaluate what they are given to complete by would run "$(…)" out of a description, or out of a
// name that a node made up.
func (a *app) names(cmd *cobra.Command, of func(api.Service) []string, typed, service string) []string {
	if a.checkGlobals(cmd, nil) != nil {
		return nil
	}
	a.timeout = min(a.timeout, completionLimit)
	ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
	defer cancel()
	var names []string
	_ = a.call(ctx, func(ctx context.Context, c *api.Client) error { // there is nobody to tell
		list, err := c.Services(ctx, api.ServiceFilter{Name: service})
		for _, s := range list.Services {
			for _, name := range of(s) {
				if (grant.ValidService(name) == nil || policy.ValidName(name) == nil) && strings.HasPrefix(name, typed) {
					names = append(names, name)
				}
			}
		}
		return err
	})
	return names
}
