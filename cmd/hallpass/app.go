package main

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is the process as the commands see it. Everything a command reads or writes comes through
// it, so that a test runs a command as a function.
type app struct {
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	environ func() []string
	now     func() time.Time

	// set while cobra parses, read afterwards; global flags first
	output   string
	servers  []string
	identity string
	timeout  time.Duration

	command string // that runs, "hallpass request create"
}

// run executes one command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.newRoot() //nolint:contextcheck // commands take their context from cobra when they run
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.fail(cmd, err)
}

// env returns a variable of the environment, or "".
func (a *app) env(name string) string {
	for _, entry := range a.environ() {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "hallpass",
		Short: "Just-in-time access for services: ask, approve, a certificate that ends by itself",
		Long: `Just-in-time access for services. Nobody holds standing access: a person or a
workload asks for a narrow permission, approvers approve, and a short-lived
certificate whose name is the permission opens exactly that, until it ends.

Who you are is an identity folder (cert.pem, key.pem, identity-bundle.pem):
--identity or HALLPASS_IDENTITY. Which cluster: --server or HALLPASS_SERVER.

Exit status: 0 done, 1 error, 2 wrong usage, 3 denied, 4 pending or timed out,
5 not authenticated.`,
		Args:              a.noCommand,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: a.checkGlobals,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%w", err) })
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "table", "form of the answer: table, json or yaml")
	flags.StringSliceVar(&a.servers, "server", nil, "control nodes, https://host:port, comma separated (HALLPASS_SERVER)")
	flags.StringVar(&a.identity, "identity", "", "identity `folder` (HALLPASS_IDENTITY)")
	flags.DurationVar(&a.timeout, "timeout", 15*time.Second, "how long to try to reach the cluster")
	root.AddGroup(
		&cobra.Group{ID: "access", Title: "Access:"},
		&cobra.Group{ID: "rules", Title: "Rules and records:"},
		&cobra.Group{ID: "run", Title: "Run and operate:"},
	)
	a.addCommands(root)
	root.InitDefaultCompletionCmd()
	a.strict(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("access", a.newStatusCommand(), a.newRequestCommand(), a.newReviewCommand(), a.newBreakGlass(), a.newConsoleCommand(), a.newGrantCommand(),
		a.newConnectCommand(), a.newExecCommand(), a.newAgentCommand(), a.newMCPCommand(), newCertCommand(a))
	add("rules", a.newPolicyCommand(), a.newGroupCommand(), a.newPersonCommand(), a.newChangeCommand(),
		a.newSubjectCommand(), a.newIssuerCommand(), a.newAuditCommand())
	add("run", newDemoCommand(a), newDevCommand(a), newDemoUpstreamCommand(a),
		a.newServerCommand(), a.newProxyCommand(), a.newSignerCommand(), a.newSlackCommand(), a.newConfigCommand(), a.newHealthCommand(),
		newCACommand(a), a.newIdentityCommand(), a.newEmergencyCommand(), a.newNotifyCommand(), a.newBundleCommand(), a.newClusterCommand(), a.newSnapshotCommand(), a.newVersionCommand())
}

// strict gives each command that only holds others an error for a word that is none of them:
// cobra would print its help and exit 0, and a script would take a typing mistake for success.
func (a *app) strict(cmd *cobra.Command) {
	for _, child := range cmd.Commands() {
		if !child.Runnable() && child.HasSubCommands() {
			child.Args = a.noCommand
			child.RunE = func(cmd *cobra.Command, _ []string) error {
				if err := cmd.Help(); err != nil {
					return err
				}
				return usagef("say which")
			}
		}
		a.strict(child)
	}
}

func (a *app) noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
}

// checkGlobals checks the global flags, and fills them from the environment.
func (a *app) checkGlobals(cmd *cobra.Command, _ []string) error {
	a.command = cmd.CommandPath()
	if !validOutput(a.output) {
		return usagef("-o %s: want table, json or yaml", a.output)
	}
	if len(a.servers) == 0 {
		for s := range strings.SplitSeq(a.env("HALLPASS_SERVER"), ",") {
			if s = strings.TrimSpace(s); s != "" {
				a.servers = append(a.servers, s)
			}
		}
	}
	if a.identity == "" {
		a.identity = a.env("HALLPASS_IDENTITY")
	}
	return nil
}

// exactArgs demands one argument for each name, in that order.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s: no %s given", cmd.CommandPath(), names[len(args)])
		case len(args) > len(names):
			return usagef("%s: %q is one argument too many", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}

// isTerminal reports whether v is a file that a person looks at.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
