package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/proxy"
)

// newProxyDoctorPostgres makes `hallpass proxy doctor-postgres`.
func (a *app) newProxyDoctorPostgres() *cobra.Command {
	var file string
	var permissions []string
	cmd := &cobra.Command{
		Use:   "doctor-postgres --config FILE [--role 'postgres DB as ROLE']...",
		Short: "Log in as each role of a postgres service, and say whether it could become another",
		Long: `Log in to the database as each role, as the proxy does for a session, and say whether
the proxy opens it: not a superuser, nor CREATEROLE, REPLICATION or BYPASSRLS, nor
a member of any other role. It also says what a role may do beyond its own rights
without becoming another: SECURITY DEFINER functions, languages that are not trusted,
foreign servers. Without --role it looks at the roles that the password file names
with their database. Nothing is changed.

The exit status is 0 when every role would be opened, and 3 when one would not.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("give --config")
			}
			s, err := loadProxy(file)
			if err != nil {
				return err
			}
			roles := make([]proxy.PostgresRole, len(permissions))
			for i, text := range permissions {
				if roles[i], err = proxy.ParsePostgresRole(text); err != nil {
					return &statusError{exitUsage, fmt.Errorf("--role: %w", err)}
				}
			}
			found, err := proxy.CheckPostgres(cmd.Context(), s, roles)
			if err != nil {
				return err
			}
			if err := a.print(found, func(w *tabular) { postgresTable(w, found) }); err != nil {
				return err
			}
			for _, f := range found {
				if f.Refused {
					return deniedf("role %s in database %s is not opened", f.Role, f.Database)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the proxy's configuration `file`")
	cmd.Flags().StringArrayVar(&permissions, "role", nil, "a database and `role` to look at, as grants say it")
	return cmd
}

func postgresTable(w *tabular, found []proxy.PostgresFinding) {
	w.row("DATABASE", "ROLE", "OPENED", "FINDING")
	for _, f := range found {
		opened := "yes"
		switch {
		case f.Refused:
			opened = "no"
		case f.Role == "":
			opened = "-"
		}
		w.row(f.Database, f.Role, opened, f.Text)
	}
	w.flush()
}
