package main

import (
	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/ca/kms"
)

// rootKeyFlags say where the keys of new roots are.
type rootKeyFlags struct {
	kms, identity, grants string
	existing              bool
}

func (f *rootKeyFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.kms, "kms", "", "`URI` of the KMS for the roots' keys, as go.step.sm/crypto has it; its PIN by pin-source=/FILE or pin-source=env:NAME (default: the folder)")
	flags.StringVar(&f.identity, "identity-root-key", "", "`URI` of the key of the identities' root in the KMS")
	flags.StringVar(&f.grants, "grants-root-key", "", "`URI` of the key of the grants' root in the KMS")
	flags.BoolVar(&f.existing, "existing-keys", false, "take keys that are in the KMS, and make none")
}

// rootKeys checks the flags before anything is made. A PIN on a command line is in
// the process list already, and must not be in a message as well.
func (f *rootKeyFlags) rootKeys() (ca.RootKeys, error) {
	for _, u := range []struct{ flag, uri string }{{"--kms", f.kms}, {"--identity-root-key", f.identity}, {"--grants-root-key", f.grants}} {
		if u.uri == "" {
			continue
		}
		if err := kms.Check(u.uri); err != nil {
			return ca.RootKeys{}, usagef("%s: %w", u.flag, err)
		}
	}
	switch {
	case f.kms == "" && (f.identity != "" || f.grants != "" || f.existing):
		return ca.RootKeys{}, usagef("--identity-root-key, --grants-root-key and --existing-keys are of a KMS: --kms URI says which")
	case f.kms != "" && !kms.Built:
		return ca.RootKeys{}, kms.ErrNoKMS
	}
	return ca.RootKeys{KMS: f.kms, Identity: f.identity, Grants: f.grants, Existing: f.existing}, nil
}
