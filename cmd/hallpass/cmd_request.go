package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

func (a *app) newRequestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "request",
		Short: "Ask for access: search, create, list, get, cancel, extend, return",
	}
	cmd.AddCommand(a.newRequestSearch(), a.newRequestCreate(), a.newRequestList(), a.newRequestGet(), a.newRequestCancel(), a.newRequestExtend(), a.newRequestReturn())
	return cmd
}

// requestFlags are the flags of `request create`.
type requestFlags struct {
	allow   []string
	bundles []string
	length  time.Duration
	reason  string
	start   string
	subject string
	csr     string
	dryRun  bool
	handOn  bool
	wait    time.Duration
	quiet   bool
}

func (a *app) newRequestCreate() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:   "create SERVICE --allow PERMISSION [--allow …] [--bundle NAME …] --for 30m --reason TEXT",
		Short: "Ask for permissions at a service, for a time",
		Long: `Ask for permissions at a service, for a time. A permission is written as

  'GET /accounts/**'            one method and everything below a path
  'GET,HEAD /accounts/*'        two methods, one path segment
  'grpc bank.Ledger/Transfer'   a gRPC method ('grpc bank.Ledger/*': all of them)
  'postgres orders as reader'   a database as a role
  tcp                           the whole of a TCP service

A bundle is permissions under a name: see hallpass request search. What it stands
for when you ask is what you ask for.

With --wait the command returns once the request is decided: status 0 granted,
3 denied, 4 still pending. --dry-run asks nothing: it says which rule applies,
who must approve and how long at most.`,
		Example: `  hallpass request create payments --allow 'GET /accounts/**' --for 30m --reason 'ticket 4711' --wait`,
		Args:    exactArgs("SERVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := f.input(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				if f.dryRun {
					return a.dryRun(ctx, c, in)
				}
				return a.createRequest(ctx, c, in, f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.allow, "allow", nil, "`permission` to ask for; repeat for more")
	addBundles(cmd, &f)
	flags.DurationVar(&f.length, "for", 0, "how long, counted from approval or from --start")
	flags.StringVar(&f.reason, "reason", "", "why, for the approvers and the audit log")
	flags.StringVar(&f.start, "start", "", "scheduled start, RFC 3339 (default: on approval)")
	flags.StringVar(&f.subject, "subject", "", "SPIFFE `ID` that gets the access (default: you)")
	flags.StringVar(&f.csr, "csr", "", "PEM certificate request `file`: only its key will get certificates")
	flags.BoolVar(&f.handOn, "delegable", false, "so that its subject may hand on parts of it (hallpass grant delegate)")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the request's id alone")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what the policy would answer")
	addWait(cmd, &f.wait)
	a.offersNames(cmd)
	return cmd
}

// addBundles adds --bundle.
func addBundles(cmd *cobra.Command, f *requestFlags) {
	cmd.Flags().StringArrayVar(&f.bundles, "bundle", nil, "`name` of a bundle of the service to ask for; repeat for more")
}

// addWait adds --wait and --wait=10m.
func addWait(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 0, "wait until it is decided; --wait=10m: at most so long")
	cmd.Flags().Lookup("wait").NoOptDefVal = "24h"
}

// input checks the flags as far as it needs no server, so that a typing mistake costs no trip.
func (f requestFlags) input(service string) (api.RequestInput, error) {
	in := api.RequestInput{
		Service: service, Permissions: f.allow, Bundles: f.bundles, Reason: f.reason,
		Duration: api.Duration(f.length), Subject: f.subject, Delegable: f.handOn,
	}
	switch {
	case len(f.allow)+len(f.bundles) == 0:
		return in, usagef("no permission given: --allow 'GET /accounts/**', or --bundle NAME (hallpass request search %s)", service)
	case f.length <= 0:
		return in, usagef("no duration given: --for 30m")
	case strings.TrimSpace(f.reason) == "":
		return in, usagef("no reason given: --reason 'why you need it'")
	}
	if err := grant.ValidService(service); err != nil {
		return in, usagef("%w", err)
	}
	if len(f.allow) > 0 {
		if _, err := grant.ParseScope(service, f.allow); err != nil {
			return in, usagef("--allow: %w", err)
		}
	}
	for _, name := range f.bundles {
		if err := policy.ValidName(name); err != nil {
			return in, usagef("--bundle: %w", err)
		}
	}
	if f.start != "" {
		t, err := time.Parse(time.RFC3339, f.start)
		if err != nil {
			return in, usagef("--start %q: want a form such as 2026-01-31T18:00:00Z", f.start)
		}
		in.Start = &t
	}
	if f.csr != "" {
		data, err := os.ReadFile(f.csr)
		if err != nil {
			return in, usagef("--csr: %w", err)
		}
		in.CSR = string(data)
	}
	return in, nil
}

func (a *app) dryRun(ctx context.Context, c *api.Client, in api.RequestInput) error {
	d, err := c.DryRun(ctx, in)
	if err != nil {
		return err
	}
	return a.printDryRun(d)
}

func (a *app) printDryRun(d api.DryRun) error {
	err := a.print(d, func(w *tabular) {
		switch {
		case !d.Allowed:
			w.field("answer", "denied")
		case d.BreakGlass != nil:
			w.field("answer", "granted at once by breaking the glass")
			glassFields(w, d.BreakGlass)
		case d.Auto:
			w.field("answer", "granted at once")
		default:
			w.field("answer", "after approval")
		}
		w.field("asks for", d.Permissions...)
		w.field("because", d.Reason)
		w.field("rules", d.Rules...)
		w.field("needs", needs(d.Require)...)
		escalationFields(w, d.Escalation)
		delegationFields(w, d.Delegation)
		if d.Allowed {
			w.field("at most", d.MaxDuration.String())
			w.field("certificates", "live "+d.CertificateTTL.String())
			stepUpField(w, d.StepUp)
			w.field("name", d.SPIFFEID)
		}
	})
	if err == nil && !d.Allowed {
		return &statusError{status: exitDenied}
	}
	return err
}

func (a *app) createRequest(ctx context.Context, c *api.Client, in api.RequestInput, f requestFlags) error {
	r, err := c.CreateRequest(ctx, in)
	if err != nil {
		return err
	}
	return a.asked(ctx, c, r, f)
}

// asked prints a request that was made, or waits for its decision first.
func (a *app) asked(ctx context.Context, c *api.Client, r api.Request, f requestFlags) error {
	if f.quiet {
		fmt.Fprintln(a.stdout, safeLine(r.ID))
	}
	if r.State == api.RequestPending && f.wait > 0 {
		fmt.Fprintln(a.stderr, safeLine(fmt.Sprintf("request %s waits for %s", r.ID, waitsFor(r, " and "))))
		return a.waitRequest(ctx, c, r.ID, f.wait, f.quiet)
	}
	if f.quiet {
		return nil
	}
	if err := a.print(r, func(w *tabular) { requestFields(w, r) }); err != nil {
		return err
	}
	a.nextForRequest(r)
	return nil
}

// waitRequest waits for the decision, prints the request, and returns the status it stands for.
func (a *app) waitRequest(ctx context.Context, c *api.Client, id string, wait time.Duration, quiet bool) error {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	r, err := c.WaitRequest(waiting, id)
	if err != nil && (!errors.Is(err, context.DeadlineExceeded) || r.ID == "") {
		return err
	}
	if !quiet {
		if err := a.print(r, func(w *tabular) { requestFields(w, r) }); err != nil {
			return err
		}
	}
	switch r.State {
	case api.RequestApproved:
		a.nextForRequest(r)
		return nil
	case api.RequestPending:
		return pendingf("request %s is still pending: it needs %s", r.ID, waitsFor(r, " and "))
	default:
		return deniedf("request %s is %s", r.ID, r.State)
	}
}

func (a *app) nextForRequest(r api.Request) {
	switch r.State {
	case api.RequestPending:
		a.next("an approver runs: hallpass review show %s", r.ID)
	case api.RequestApproved:
		if r.Extends != nil {
			a.next("nothing: who holds it renews its certificate as before, and open connections stay")
			return
		}
		a.next("hallpass grant cert %s   or   hallpass connect %s --via HOST:PORT --grant %s", r.ID, r.Service, r.ID)
	}
}

func (a *app) newRequestList() *cobra.Command {
	var f api.Filter
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the requests that you may see, newest first",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.listRequests(cmd.Context(), f, all)
		},
	}
	addFilter(cmd, &f, &all)
	return cmd
}

// addFilter adds the flags that select requests or grants.
func addFilter(cmd *cobra.Command, f *api.Filter, all *bool) {
	flags := cmd.Flags()
	flags.StringVar(&f.State, "state", f.State, "only those in this state")
	flags.StringVar(&f.Service, "service", "", "only those for this service")
	flags.StringVar(&f.Subject, "subject", "", "only those of this SPIFFE `ID`")
	flags.StringVar(&f.Requester, "requester", "", "only those asked for by this SPIFFE `ID`")
	flags.IntVar(&f.Limit, "limit", 50, "at most so many")
	flags.BoolVar(all, "all", false, "every page")
}

func (a *app) listRequests(ctx context.Context, f api.Filter, all bool) error {
	return a.call(ctx, func(ctx context.Context, c *api.Client) error {
		list, err := c.Requests(ctx, f)
		for ; err == nil && all && list.Next != ""; f.Cursor = "" {
			f.Cursor = list.Next
			var more api.RequestList
			more, err = c.Requests(ctx, f)
			list.Requests, list.Next = append(list.Requests, more.Requests...), more.Next
		}
		if err != nil {
			return err
		}
		return a.print(list, func(w *tabular) {
			w.row("ID", "STATE", "SUBJECT", "SERVICE", "MAY", "FOR", "NEEDS")
			for _, r := range list.Requests {
				need := ""
				if r.State == api.RequestPending {
					need = waitsFor(r, ", ")
				}
				w.row(r.ID, r.State, r.Subject, r.Service, brief(r.Permissions), r.Duration.String(), need)
			}
			more(w, list.Next)
		})
	})
}

func (a *app) newRequestGet() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show a request and what became of it",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				if wait > 0 {
					return a.waitRequest(ctx, c, args[0], wait, false)
				}
				r, err := c.Request(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(r, func(w *tabular) { requestFields(w, r) })
			})
		},
	}
	addWait(cmd, &wait)
	return cmd
}

func (a *app) newRequestCancel() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Withdraw a request that is still pending",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				r, err := c.CancelRequest(ctx, args[0])
				if err != nil {
					return err
				}
				return a.print(r, func(w *tabular) { requestFields(w, r) })
			})
		},
	}
}
