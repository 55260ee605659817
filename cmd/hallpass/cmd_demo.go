package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/internal/demo"
)

func newDemoCommand(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole cluster on this machine and walk through what it is for",
		Long: `Starts three control nodes, a proxy and an upstream as processes of their own on
free loopback ports, walks through a request from refusal to expiry with nodes
killed on the way, says what it did and how long each step took, and removes
everything. The roots are random and marked as development roots.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := demoOptions(a, dir)
			if err != nil {
				return err
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "put everything in this new `folder` and keep its logs until the end")
	return cmd
}

func newDevCommand(a *app) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Leave the demo's cluster running, with example people, until Ctrl-C",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := demoOptions(a, dir)
			if err != nil {
				return err
			}
			return demo.Dev(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "put everything in this new `folder`")
	return cmd
}

// newDemoUpstreamCommand is the service behind the demo's proxy.
func newDemoUpstreamCommand(*app) *cobra.Command {
	return &cobra.Command{
		Use:    "demo-upstream ADDRESS",
		Short:  "Serve the example service of the demo, plain HTTP",
		Args:   exactArgs("ADDRESS"),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return demo.Upstream(cmd.Context(), args[0])
		},
	}
}

func demoOptions(a *app, dir string) (demo.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return demo.Options{}, err
	}
	return demo.Options{Binary: self, Out: a.stdout, Dir: dir}, nil
}
