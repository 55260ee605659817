package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) newHealthCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health ADMIN-ADDRESS",
		Short: "Ask a server's or proxy's admin port whether it is ready: status 0 or 1",
		Long: `Ask a server's or proxy's admin port whether it is ready. The address is that of
the configuration file: HOST:PORT, or unix:PATH. For container health checks.`,
		Args: exactArgs("ADMIN-ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.health(ctx, args[0])
		},
	}
	cmd.Flags().DurationVar(&timeout, "within", 3*time.Second, "how long to wait for the answer")
	return cmd
}

// health is the answer of `hallpass health`.
type health struct {
	Ready  bool   `json:"ready"`
	Detail string `json:"detail"`
}

func (a *app) health(ctx context.Context, address string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	target := address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		target = "localhost"
		client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
	}
	u := url.URL{Scheme: "http", Host: target, Path: "/readyz"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return usagef("admin address %q: want HOST:PORT or unix:PATH", address)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	h := health{Ready: resp.StatusCode == http.StatusOK, Detail: strings.TrimSpace(string(body))}
	var raw json.RawMessage
	if json.Unmarshal(body, &raw) != nil {
		if !h.Ready {
			return fmt.Errorf("not ready: %s: %s", resp.Status, h.Detail)
		}
		return a.print(h, func(w *tabular) { w.line("ready") })
	}
	var said findings
	_ = json.Unmarshal(body, &said) // of another shape, it says nothing here
	if !h.Ready {
		return fmt.Errorf("not ready: %s: %s", resp.Status, strings.Join(said.bad("fail"), "; "))
	}
	return a.print(map[string]any{"ready": true, "detail": raw}, func(w *tabular) {
		w.line("ready")
		for _, warning := range said.bad("warn") {
			w.line("warning: %s", warning)
		}
	})
}

// findings is what /readyz says, a server's or a proxy's.
type findings struct {
	Findings []struct {
		Check  string `json:"check"`
		Status string `json:"status"`
		Detail string `json:"detail"`
	} `json:"findings"`
	Problems []string `json:"problems"`
}

// bad is what is of that status; what a proxy finds wrong always fails.
func (f findings) bad(status string) (out []string) {
	if status == "fail" {
		out = append(out, f.Problems...)
	}
	for _, found := range f.Findings {
		if found.Status == status {
			out = append(out, found.Check+": "+found.Detail)
		}
	}
	return out
}
