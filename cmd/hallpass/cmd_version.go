package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// versionInfo is the answer of `hallpass version`.
type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which build this is",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(v, func(w *tabular) { w.line("hallpass %s (%s, %s)", v.Version, v.Go, v.Platform) })
		},
	}
}
