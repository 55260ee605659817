package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/proxy/records"
)

const (
	// issuedBefore is how much earlier than a record of its use a certificate is looked for at
	// first. One that is not found there is looked for in the whole log.
	issuedBefore = 25 * time.Hour
	// maxRecord is how long a line of an access log may be; the longest has a path of 8 KB, escaped.
	maxRecord = 1 << 20
)

func (a *app) newAuditCheckAccess() *cobra.Command {
	var v verifying
	var export string
	cmd := &cobra.Command{
		Use:   "check-access FILE...",
		Short: "Find certificates in proxies' access logs that were never committed",
		Long: `Read access logs of proxies and look up every grant certificate in them in the
audit log: its issuer, its serial and the grant that it was for. Nothing is signed
before it is in that log, so one that is not there was made by somebody who has a
node's issuer key. FILE - is standard input.

The live log is asked, from the first record's time on, and for what is not found
there as a whole. With --export FOLDER, that of audit export, nothing is asked of
anybody: the export is verified first, with --manifest, --keys or --key. Export
after you took the access logs: what is newer than the export is not in it.

Emergency certificates are told apart: those that were imported, and those that
were not yet.

The exit status is 1 if any certificate was never committed, or not imported.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: no access log given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			seen, err := a.readAccess(args)
			if err != nil {
				return err
			}
			if export != "" {
				err = a.eachExported(export, v, seen.committed)
			} else {
				err = a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error { return committedLive(ctx, c, seen) })
			}
			if err != nil {
				return err
			}
			return a.sayAccess(seen)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&export, "export", "", "`folder` of audit export to look in, instead of the live log")
	v.exportFlags(cmd)
	return cmd
}

// accessed is a grant certificate as access logs have it. A record that names another grant than
// the certificate was committed for is of another certificate with that serial.
type accessed struct {
	Issuer string `json:"issuer"`
	Serial string `json:"serial"`
	Grant  string `json:"grant"`
}

// access is what the access logs say of one certificate.
type access struct {
	accessed
	Subject string    `json:"subject"`
	Service string    `json:"service"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Records int       `json:"records"`

	Emergency bool `json:"emergency,omitempty"` // an emergency issuer signed it
}

// accesses is what was read of access logs.
type accesses struct {
	records int
	unread  int
	all     map[accessed]*access
	missing map[accessed]*access // those that were not found in the audit log
	// emergencies are those that were imported afterwards.
	emergencies []*access
	first       time.Time
}

// readAccess reads access logs.
func (a *app) readAccess(files []string) (*accesses, error) {
	seen := &accesses{all: map[accessed]*access{}, missing: map[accessed]*access{}}
	for _, name := range files {
		var err error
		if name == "-" {
			err = seen.read(a.stdin)
		} else {
			err = seen.readFile(name)
		}
		if err != nil {
			return nil, err
		}
	}
	if seen.records == 0 && seen.unread > 0 {
		// Nothing looked at is not nothing found.
		return nil, fmt.Errorf("there is no access record in %s: want the access logs of proxies", strings.Join(files, ", "))
	}
	return seen, nil
}

func (s *accesses) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	if err := errors.Join(s.read(f), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// read takes in the records of one log. A line that is no record, as one that a crash has torn, is
// counted: what was in it nobody knows.
func (s *accesses) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var rec struct {
			accessed
			Time    time.Time `json:"time"`
			Kind    string    `json:"kind"`
			Subject string    `json:"subject"`
			Service string    `json:"service"`

			Emergency bool `json:"emergency"`
		}
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil || rec.Kind == "" || rec.Time.IsZero() {
			s.unread++
			continue
		}
		if rec.Kind == records.KindLog {
			continue // the line that begins a log
		}
		s.records++
		// An identity without a grant opens nothing, and the offline root or another domain may have made it.
		if rec.Grant == "" || rec.Serial == "" {
			continue
		}
		at := s.all[rec.accessed]
		if at == nil {
			at = &access{accessed: rec.accessed, Subject: rec.Subject, Service: rec.Service, First: rec.Time, Last: rec.Time, Emergency: rec.Emergency}
			s.all[rec.accessed], s.missing[rec.accessed] = at, at
		}
		at.Records++
		if rec.Time.Before(at.First) {
			at.First = rec.Time
		}
		if rec.Time.After(at.Last) {
			at.Last = rec.Time
		}
		if s.first.IsZero() || rec.Time.Before(s.first) {
			s.first = rec.Time
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line of over %d bytes is no access record", maxRecord)
	}
	return lines.Err()
}

// committed takes note of an entry of the audit log.
func (s *accesses) committed(e audit.Entry) error {
	if e.Kind != "grant.issue" && e.Kind != "emergency.import" {
		return nil
	}
	found := accessed{Grant: e.Object}
	if err := json.Unmarshal(e.Details, &found); err != nil {
		return fmt.Errorf("entry %d: %w", e.Index, err)
	}
	found.Grant = e.Object
	if at := s.missing[found]; at != nil && e.Kind == "emergency.import" {
		s.emergencies = append(s.emergencies, at)
	}
	delete(s.missing, found)
	return nil
}

// committedLive looks the certificates up in the live log.
func committedLive(ctx context.Context, c *api.Client, seen *accesses) error {
	if len(seen.missing) == 0 {
		return nil
	}
	head, err := c.AuditEntries(ctx, 0, 1)
	if err != nil {
		return err
	}
	from, err := firstSince(ctx, c, seen.first.Add(-issuedBefore), head.Size)
	if err != nil {
		return err
	}
	look := func(e audit.Entry, _ []byte) (more bool, err error) {
		err = seen.committed(e)
		return len(seen.missing) > 0, err
	}
	if err := eachEntry(ctx, c, from, head.Size, look); err != nil || len(seen.missing) == 0 {
		return err
	}
	return eachEntry(ctx, c, 0, from, look)
}

// checkedAccess is the answer of `audit check-access`.
type checkedAccess struct {
	Records        int       `json:"records"`
	Unread         int       `json:"unread_lines"`
	Certificates   int       `json:"certificates"`
	NeverCommitted []*access `json:"never_committed"`
	// NotImported are those of never_committed that emergency issuers signed: until the
	// custodians' journal is imported nobody can say whether they did.
	NotImported []*access `json:"not_imported"`
	Emergency   []*access `json:"emergency"` // made in an emergency, and imported
}

// sayAccess prints what was found. Its error is for what was never committed.
func (a *app) sayAccess(seen *accesses) error {
	out := checkedAccess{
		Records: seen.records, Unread: seen.unread, Certificates: len(seen.all), NeverCommitted: []*access{}, NotImported: []*access{},
		Emergency: append([]*access{}, seen.emergencies...),
	}
	for _, at := range seen.missing {
		if at.Emergency {
			out.NotImported = append(out.NotImported, at)
		} else {
			out.NeverCommitted = append(out.NeverCommitted, at)
		}
	}
	for _, list := range [][]*access{out.NeverCommitted, out.NotImported, out.Emergency} {
		slices.SortFunc(list, func(x, y *access) int {
			return cmp.Or(x.First.Compare(y.First), cmp.Compare(x.Issuer+x.Serial+x.Grant, y.Issuer+y.Serial+y.Grant))
		})
	}
	if seen.unread > 0 {
		fmt.Fprintf(a.stderr, "warning: %d lines are no access records, and were not looked at\n", seen.unread)
	}
	if err := a.print(out, out.table); err != nil {
		return err
	}
	if n := len(out.NeverCommitted); n > 0 {
		return fmt.Errorf("%d of %d certificates were never committed: their issuer's key is stolen; deny it, and see what to do in docs/security.md, \"a control node\"", n, out.Certificates)
	}
	if n := len(out.NotImported); n > 0 {
		return fmt.Errorf("%d emergency certificates are not imported: bring the journal with hallpass emergency import; if the custodians know nothing of them, deny the issuer", n)
	}
	return nil
}

func (c checkedAccess) table(w *tabular) {
	w.field("records", strconv.Itoa(c.Records))
	w.field("certificates", strconv.Itoa(c.Certificates))
	w.field("never committed", strconv.Itoa(len(c.NeverCommitted)))
	if n := len(c.NotImported) + len(c.Emergency); n > 0 {
		w.field("emergency", fmt.Sprintf("%d, of which %d are not imported", n, len(c.NotImported)))
	}
	w.flush()
	if len(c.NeverCommitted)+len(c.NotImported)+len(c.Emergency) > 0 {
		w.row("SERIAL", "ISSUER", "GRANT", "SUBJECT", "SERVICE", "FIRST", "LAST", "RECORDS", "WHAT")
	}
	for _, list := range []struct {
		what string
		all  []*access
	}{{"never committed", c.NeverCommitted}, {"emergency, NOT IMPORTED", c.NotImported}, {"emergency", c.Emergency}} {
		for _, at := range list.all {
			w.row(at.Serial, at.Issuer, at.Grant, at.Subject, at.Service,
				at.First.UTC().Format(time.RFC3339), at.Last.UTC().Format(time.RFC3339), strconv.Itoa(at.Records), list.what)
		}
	}
}
