package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

// status is the answer of `hallpass status`.
type status struct {
	Identity  string       `json:"identity"`
	Folder    string       `json:"folder"`
	NotAfter  time.Time    `json:"not_after"`
	Person    string       `json:"person,omitempty"`
	Groups    []string     `json:"groups"`
	Admin     bool         `json:"admin"`
	Grants    []api.Grant  `json:"grants"`
	Cluster   *api.Cluster `json:"cluster,omitempty"`
	Reachable bool         `json:"reachable"`
	Problem   string       `json:"problem,omitempty"`
}

func (a *app) newStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Who am I, until when, my live grants, the cluster",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.identity == "" {
				return unauthenticatedf("no identity given: --identity FOLDER or HALLPASS_IDENTITY")
			}
			cert, err := readIdentity(a.identity)
			if err != nil {
				return unauthenticatedf("identity: %w", err)
			}
			s := status{Identity: spiffeOf(cert), Folder: a.identity, NotAfter: cert.NotAfter}
			err = a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return s.ask(ctx, c) })
			if err != nil {
				s.Problem = err.Error()
			}
			return errors.Join(a.print(s, s.table), err)
		},
	}
}

// ask fills in what the cluster knows.
func (s *status) ask(ctx context.Context, c *api.Client) error {
	me, err := c.WhoAmI(ctx)
	if err != nil {
		return err
	}
	s.Reachable, s.Person, s.Groups, s.Admin = true, me.Person, me.Groups, me.Admin
	grants, err := c.Grants(ctx, api.Filter{Subject: me.ID, State: api.GrantActive})
	if err != nil {
		return err
	}
	s.Grants = grants.Grants
	cluster, err := c.Cluster(ctx)
	if err != nil {
		return err
	}
	s.Cluster = &cluster
	return nil
}

func (s *status) table(w *tabular) {
	w.field("identity", s.Identity)
	w.field("folder", s.Folder)
	w.field("until", w.when(s.NotAfter))
	if !s.Reachable {
		w.field("cluster", "not reached")
		return
	}
	person := s.Person
	if person == "" {
		person = "none: this identity cannot vote"
	} else if s.Admin {
		person += " (admin)"
	}
	w.field("person", person)
	w.field("groups", strings.Join(s.Groups, ", "))
	if cl := s.Cluster; cl != nil {
		w.field("cluster", fmt.Sprintf("%s, %d nodes, leader %s, answered by %s", cl.TrustDomain, len(cl.Nodes), orNone(cl.Leader), cl.Node))
	}
	if len(s.Grants) == 0 {
		w.field("grants", "none live")
		return
	}
	w.line("")
	grantRows(w, s.Grants)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
