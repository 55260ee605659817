package main

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/ca/kms"
	"github.com/hallpass/hallpass/trust"
)

// rootsFlags are the flags of `ca rotate`, `ca retire` and `ca deny`.
type rootsFlags struct {
	dir                string
	identities, grants bool
}

func (f *rootsFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "dir", "", "`folder` of ca init")
	cmd.Flags().BoolVar(&f.identities, "identities", false, "the identities' roots alone")
	cmd.Flags().BoolVar(&f.grants, "grants", false, "the grants' roots alone")
}

func (f *rootsFlags) options(a *app) (ca.RootsOptions, error) {
	if f.dir == "" {
		return ca.RootsOptions{}, usagef("no folder given: --dir FOLDER")
	}
	o := ca.RootsOptions{Identities: f.identities, Grants: f.grants, Open: kms.Open, Now: a.now()}
	if !o.Identities && !o.Grants {
		o.Identities, o.Grants = true, true
	}
	return o, nil
}

func newCARotate(a *app) *cobra.Command {
	var f rootsFlags
	var keys rootKeyFlags
	onDisk := false
	cmd := &cobra.Command{
		Use:   "rotate --dir FOLDER",
		Short: "Make new roots beside those that are, and the documents that say so",
		Long: `Make a new root of each trust domain beside those that are in force, and add to
FOLDER/roots.jsonl the documents that put them in force: numbered, and signed by
the old and the new root. The new roots sign from then on.

Bring roots.jsonl to the cluster with bundle publish, and wait until all proxies
follow, before you renew the nodes. Nobody has to trust whoever carries it.

With --kms the new roots' keys are made in a KMS, as with ca init: from the folder
into one, or from one to the next. Out of one they do not come by oversight: that
takes --keys-on-disk.`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			o, err := f.options(a)
			if err != nil {
				return err
			}
			if o.Keys, err = keys.rootKeys(); err != nil {
				return err
			}
			o.OnDisk = onDisk
			made, err := ca.RotateRoots(f.dir, o)
			return a.madeDocuments(f.dir, made, err)
		},
	}
	f.add(cmd)
	keys.add(cmd)
	cmd.Flags().BoolVar(&onDisk, "keys-on-disk", false, "the new roots' keys lie in the folder, although the old ones' are in a KMS")
	return cmd
}

func newCARetire(a *app) *cobra.Command {
	var f rootsFlags
	cmd := &cobra.Command{
		Use:   "retire --dir FOLDER",
		Short: "Take all roots but the newest out of force, by document",
		Long: `Take all roots but the newest of each trust domain out of force: the document
goes to FOLDER/roots.jsonl, and to the cluster with bundle publish. Whatever the
old roots have signed ends where it is followed: nodes, services and persons must
have certificates of the new ones by then. Afterwards destroy the old keys.`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			o, err := f.options(a)
			if err != nil {
				return err
			}
			made, err := ca.RetireRoots(f.dir, o)
			return a.madeDocuments(f.dir, made, err)
		},
	}
	f.add(cmd)
	return cmd
}

func newCADeny(a *app) *cobra.Command {
	var f rootsFlags
	cmd := &cobra.Command{
		Use:   "deny ISSUER-ID... --dir FOLDER",
		Short: "Take issuers out of use by document, when the cluster cannot be asked to",
		Long: `Take issuers out of use by a document that the roots sign. issuer deny does the
same at once, as long as there is a cluster that can be trusted with it; this is
for when there is none. Proxies take the document from bundle publish, or from
their roots_file.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: no ISSUER-ID given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			for _, id := range args {
				if sum, err := hex.DecodeString(id); err != nil || len(sum) != sha256.Size || id != strings.ToLower(id) {
					return usagef("%q is no ISSUER-ID: 64 hex digits in lower case, as cluster status lists them", id)
				}
			}
			o, err := f.options(a)
			if err != nil {
				return err
			}
			made, err := ca.DenyIssuers(f.dir, args, o)
			return a.madeDocuments(f.dir, made, err)
		},
	}
	f.add(cmd)
	return cmd
}

// madeDocument is one line of the answer of the three.
type madeDocument struct {
	TrustDomain string   `json:"trust_domain"`
	Sequence    uint64   `json:"sequence"`
	Roots       []string `json:"roots"`
	Retired     []string `json:"retired"`
	Denied      []string `json:"denied"`
	File        string   `json:"file"`
}

func (a *app) madeDocuments(dir string, made []trust.Document, err error) error {
	if err != nil {
		return err
	}
	file := filepath.Join(dir, ca.RootsFile)
	out := make([]madeDocument, 0, len(made))
	for _, d := range made {
		m := madeDocument{TrustDomain: d.TrustDomain, Sequence: d.Sequence, Roots: []string{}, Retired: d.Retired, Denied: d.Denied, File: file}
		for _, root := range d.Roots {
			m.Roots = append(m.Roots, trust.ID(root))
		}
		out = append(out, m)
	}
	err = a.print(out, func(w *tabular) {
		for _, m := range out {
			w.field("trust domain", m.TrustDomain)
			w.field("document", strconv.FormatUint(m.Sequence, 10))
			for _, id := range m.Roots {
				w.field("in force", id)
			}
			for _, id := range m.Retired {
				w.field("retired", id)
			}
			for _, id := range m.Denied {
				w.field("denied", id)
			}
		}
	})
	a.next("to the cluster: hallpass bundle publish %s", file)
	return err
}
