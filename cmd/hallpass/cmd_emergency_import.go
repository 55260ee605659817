package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/emergency"
)

func (a *app) newEmergencyList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "The emergency issuers that the cluster knows, and what was imported of them",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				all, err := c.Emergencies(ctx)
				if err != nil {
					return err
				}
				return a.print(all, func(w *tabular) {
					w.row("ISSUER", "UNTIL", "IMPORTED", "")
					for _, i := range all.Issuers {
						w.row(i.ID, w.when(i.NotAfter), strconv.FormatUint(i.Imported, 10), emergencyState(i))
					}
				})
			})
		},
	}
}

func emergencyState(i api.EmergencyIssuer) string {
	var words []string
	if i.Denied != nil {
		words = append(words, "denied: "+i.Denied.Reason)
	}
	if i.Forked > 0 {
		words = append(words, fmt.Sprintf("TWO HISTORIES from record %d on", i.Forked))
	}
	return strings.Join(words, "; ")
}

func (a *app) newEmergencyRegister() *cobra.Command {
	return &cobra.Command{
		Use:   "register KIT",
		Short: "Make a kit's issuer known, so that it can be denied and its journal imported",
		Long: `Make a kit's issuer known to the cluster. It lists it then, can deny it, and says
of its certificates what they are. KIT is the kit's folder, or its issuer.crt alone.`,
		Args: exactArgs("KIT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readIssuer(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				i, err := c.RegisterEmergencyIssuer(ctx, text)
				if err != nil {
					return err
				}
				return a.print(i, func(w *tabular) {
					w.field("issuer", i.ID)
					w.field("role", i.Role)
					w.field("until", w.when(i.NotAfter))
				})
			})
		},
	}
}

// readIssuer reads the issuer's certificate of a kit.
func readIssuer(path string) (string, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, ca.EmergencyIssuerFile)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

func (a *app) newEmergencyImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import KIT",
		Short: "Have the audit log take in what a kit has signed",
		Long: `Have the cluster take in the journal of a kit: KIT is its folder, or a folder with
its issuer.crt and journal.jsonl. Each certificate becomes an entry of the audit
log and a grant, which can be seen and revoked like any other. What was imported
before is passed over.

A journal that was changed, or that lacks records, is refused. One with another
history than what was imported is refused as well, and the audit log says so: a copy
of the kit was used, or the journal was cut.`,
		Args: exactArgs("KIT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := readJournal(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return a.importJournal(ctx, c, j) })
		},
	}
}

// journal is a kit's journal as it is brought.
type journal struct {
	issuerPEM string
	issuer    string
	records   []emergency.Record
	lines     []string
}

// readJournal checks a journal as the cluster will, so that nothing of a broken one is
// imported.
func readJournal(dir string) (j journal, err error) {
	if j.issuerPEM, err = readIssuer(dir); err != nil {
		return j, err
	}
	certs, err := ca.DecodeCertificates([]byte(j.issuerPEM))
	if err != nil || len(certs) != 1 {
		return j, fmt.Errorf("%s: not one certificate", filepath.Join(dir, ca.EmergencyIssuerFile))
	}
	if len(certs[0].PermittedURIDomains) != 1 {
		return j, fmt.Errorf("%s: %w", filepath.Join(dir, ca.EmergencyIssuerFile), emergency.ErrIssuer)
	}
	j.issuer = emergency.ID(certs[0])
	path := filepath.Join(dir, ca.EmergencyJournalFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return j, err
	}
	if j.records, err = emergency.ParseJournal(text, certs[0], certs[0].PermittedURIDomains[0]); err != nil {
		return j, fmt.Errorf("%s: %w", path, err)
	}
	for line := range strings.Lines(string(text)) {
		j.lines = append(j.lines, strings.TrimSuffix(line, "\n"))
	}
	return j, nil
}

// imported is the answer of `emergency import`.
type imported struct {
	Issuer  string `json:"issuer"`
	Records int    `json:"records"`
	New     int    `json:"new"`
	Head    string `json:"head"`
}

func (a *app) importJournal(ctx context.Context, c *api.Client, j journal) error {
	if _, err := c.RegisterEmergencyIssuer(ctx, j.issuerPEM); err != nil {
		return fmt.Errorf("the issuer: %w", err)
	}
	out := imported{Issuer: j.issuer, Records: len(j.lines)}
	if err := checkShort(ctx, c, j); err != nil {
		return err
	}
	for i, line := range j.lines {
		done, err := c.ImportEmergencyRecord(ctx, line, uint64(len(j.lines)))
		if err != nil {
			return fmt.Errorf("record %d: %w", i+1, err)
		}
		if out.Head = done.Head; done.New {
			out.New++
		}
	}
	return a.print(out, func(w *tabular) {
		w.field("issuer", out.Issuer)
		w.field("records", strconv.Itoa(out.Records))
		w.field("new", strconv.Itoa(out.New))
	})
}

// checkShort refuses an empty journal where some of it was imported: there is no
// record that the cluster could say so of.
func checkShort(ctx context.Context, c *api.Client, j journal) error {
	if len(j.lines) > 0 {
		return nil
	}
	all, err := c.Emergencies(ctx)
	if err != nil {
		return err
	}
	for _, i := range all.Issuers {
		if i.ID == j.issuer && i.Imported > 0 {
			return fmt.Errorf("the journal is empty, and %d records were imported before: it is an older copy, or it was cut", i.Imported)
		}
	}
	return nil
}

func (a *app) newEmergencyRevoke() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke GRANT-ID --reason TEXT",
		Short: "End an emergency grant that was not imported, by the id that proxies' records have",
		Args:  exactArgs("GRANT-ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usagef("no reason given: --reason 'why'")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				r, err := c.RevokeEmergencyGrant(ctx, args[0], reason)
				if err != nil {
					return err
				}
				return a.print(r, func(w *tabular) {
					w.line("grant %s is revoked, until no certificate of it can live: %s", r.Grant, w.when(r.Until))
				})
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	return cmd
}

// readSecretLine reads a line from a terminal without showing it.
func readSecretLine(v any) (string, error) {
	f, ok := v.(*os.File)
	if !ok {
		return "", errors.New("not a terminal")
	}
	secret, err := term.ReadPassword(int(f.Fd()))
	return string(secret), err
}

// readLine reads a line of standard input. What follows it stays there for the next.
func (a *app) readLine() (string, error) {
	in, ok := a.stdin.(*bufio.Reader)
	if !ok {
		in = bufio.NewReader(a.stdin)
		a.stdin = in
	}
	line, err := in.ReadBytes('\n')
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		return "", fmt.Errorf("no passphrase on standard input: %w", err)
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}
