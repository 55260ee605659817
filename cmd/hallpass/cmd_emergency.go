package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/ca/kms"
	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

func (a *app) newEmergencyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "emergency",
		Short: "When everything is gone: custodians let somebody in, and the log hears of it afterwards",
		Long: `When the whole control plane is gone, and people must get in to repair it:
custodians, some of them together, make grant certificates offline, with a kit
that ca emergency init made ahead. Services admit those only if their proxy's
configuration says emergency: allow. Once the cluster is back, an admin imports
the kit's journal, so that the audit log has what was done.

keygen, issue and show need no cluster; list, register, import and revoke do.`,
	}
	cmd.AddCommand(a.newEmergencyKeygen(), a.newEmergencyIssue(), a.newEmergencyShow(),
		a.newEmergencyList(), a.newEmergencyRegister(), a.newEmergencyImport(), a.newEmergencyRevoke())
	return cmd
}

func (a *app) newEmergencyKeygen() *cobra.Command {
	var out string
	var passphrase bool
	cmd := &cobra.Command{
		Use:   "keygen --out FILE",
		Short: "Make a custodian's key",
		Long: `Make a custodian's key in FILE, readable by its owner alone, and print the public
key, which is what ca emergency init needs. With --passphrase the file is encrypted
as well: asked for on the terminal, or read as a line from standard input.

Keys of age-keygen do as well.`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			if out == "" {
				return usagef("no file given: --out FILE")
			}
			secret := ""
			if passphrase {
				var err error
				if secret, err = a.askPassphrase("a passphrase for " + out); err != nil {
					return err
				}
				if secret == "" {
					return errors.New("the passphrase is empty")
				}
			}
			recipient, err := ca.NewCustodian(out, secret)
			if err != nil {
				return err
			}
			return a.print(map[string]string{"file": out, "public_key": recipient}, func(w *tabular) {
				w.field("file", out)
				w.field("public key", recipient)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to make")
	cmd.Flags().BoolVar(&passphrase, "passphrase", false, "encrypt the file with a passphrase")
	return cmd
}

// askPassphrase asks on the terminal, without an echo, or reads a line.
func (a *app) askPassphrase(what string) (string, error) {
	if isTerminal(a.stdin) {
		fmt.Fprintf(a.stderr, "%s: ", what)
		secret, err := readSecretLine(a.stdin)
		fmt.Fprintln(a.stderr)
		return secret, err
	}
	return a.readLine()
}

// emergencyIssueFlags are the flags of `emergency issue`.
type emergencyIssueFlags struct {
	kit, subject, reason, csr, out string
	keys, allow                    []string
	length                         time.Duration
}

func (a *app) newEmergencyIssue() *cobra.Command {
	var f emergencyIssueFlags
	cmd := &cobra.Command{
		Use:   "issue SERVICE --kit FOLDER --key FILE --key FILE --allow PERMISSION --for 30m --subject ID --reason TEXT",
		Short: "Make a grant certificate offline; takes as many custodians as the kit says",
		Long: `Make a grant certificate for SERVICE while there is no cluster. As many custodians
as the kit says have to act together, each with their key. It lives an hour at the
most, cannot be renewed, and opens only services whose proxy says emergency: allow.

The kit's journal has it before it is signed. Keep the journal: the cluster has to
import it, and until then it warns of every use of the certificate.

Who is let in sends a certificate request (--csr), so that nobody else has the key.
Without one the key is made in the folder. --out gets cert.pem,
identity-bundle.pem and grants-bundle.pem, and key.pem without --csr.`,
		Example: `  hallpass emergency issue payments --kit kit --key grace.key --key linus.key \
    --allow 'GET /admin/**' --for 30m --subject spiffe://acme.test/user/ada \
    --reason 'cluster lost, restoring its database' --csr ada.csr --out ada`,
		Args: exactArgs("SERVICE"),
		RunE: func(_ *cobra.Command, args []string) error { return a.emergencyIssue(args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.kit, "kit", "", "`folder` that ca emergency init made")
	flags.StringArrayVar(&f.keys, "key", nil, "`file` of a custodian's key; repeat for each")
	flags.StringArrayVar(&f.allow, "allow", nil, "`permission` to give; repeat for more")
	flags.DurationVar(&f.length, "for", 0, "how long, from now; at most 1h")
	flags.StringVar(&f.subject, "subject", "", "SPIFFE `ID` of who is let in")
	flags.StringVar(&f.reason, "reason", "", "why, for the journal and the audit log")
	flags.StringVar(&f.csr, "csr", "", "PEM certificate request `file` of who is let in")
	flags.StringVar(&f.out, "out", "", "`folder` to write (default ./emergency-TIME)")
	return cmd
}

// spec checks the flags before any custodian is asked for a passphrase.
func (f emergencyIssueFlags) spec(service string, now time.Time) (ca.EmergencySpec, error) {
	spec := ca.EmergencySpec{Reason: f.reason, Life: f.length, Now: now}
	var err error
	switch {
	case f.kit == "":
		return spec, usagef("no kit given: --kit FOLDER")
	case len(f.keys) == 0:
		return spec, usagef("no custodian's key given: --key FILE, once for each")
	case len(f.allow) == 0:
		return spec, usagef("no permission given: --allow 'GET /admin/**'")
	case f.length <= 0 || f.length > emergency.MaxLife:
		return spec, usagef("--for %s: an emergency grant lives from 1m to %s", f.length, emergency.MaxLife)
	case strings.TrimSpace(f.reason) == "":
		return spec, usagef("no reason given: --reason 'why'")
	case f.subject == "":
		return spec, usagef("nobody is named: --subject spiffe://…/user/NAME")
	}
	if spec.Subject, err = spiffeid.FromString(f.subject); err != nil {
		return spec, usagef("--subject: %w", err)
	}
	if spec.Scope, err = grant.ParseScope(service, f.allow); err != nil {
		return spec, usagef("--allow: %w", err)
	}
	if f.csr != "" {
		text, err := os.ReadFile(f.csr)
		if err != nil {
			return spec, usagef("--csr: %w", err)
		}
		if spec.PublicKey, err = ca.ParseCSR(text); err != nil {
			return spec, usagef("--csr: %w", err)
		}
	}
	return spec, nil
}

// emergencyIssued is the answer of `emergency issue`.
type emergencyIssued struct {
	Folder     string    `json:"folder"`
	Grant      string    `json:"grant"`
	SPIFFEID   string    `json:"spiffe_id"`
	Serial     string    `json:"serial"`
	Issuer     string    `json:"issuer"`
	NotAfter   time.Time `json:"not_after"`
	Custodians []string  `json:"custodians"`
	N          uint64    `json:"n"`
}

func (a *app) emergencyIssue(service string, f emergencyIssueFlags) error {
	spec, err := f.spec(service, a.now())
	if err != nil {
		return err
	}
	kit, err := ca.OpenKit(f.kit)
	if err != nil {
		return err
	}
	issuer, err := a.unlock(kit, f.keys)
	if err != nil {
		return err
	}
	dir := folder(f.out)
	if f.out == "" {
		dir = folder("emergency-" + a.now().UTC().Format("20060102-150405"))
	}
	if f.csr == "" {
		key, err := dir.key()
		if err != nil {
			return err
		}
		spec.PublicKey = key.Public()
	} else if err := dir.own(); err != nil {
		return err
	}
	chain, record, err := issuer.Issue(spec)
	if err != nil {
		return err
	}
	if err := writeEmergency(dir, kit, chain); err != nil {
		return fmt.Errorf("record %d is in the journal, and its certificate is lost: issue another: %w", record.N, err)
	}
	return a.sayIssued(dir, chain[0], record)
}

func (a *app) unlock(kit *ca.Kit, files []string) (*ca.EmergencyIssuer, error) {
	var keys []age.Identity
	for _, file := range files {
		more, err := ca.LoadCustodian(file, func(path string) (string, error) { return a.askPassphrase("passphrase of " + path) })
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
	issuer, err := kit.Unlock(keys)
	if errors.Is(err, ca.ErrCustodians) {
		return nil, deniedf("%w", err)
	}
	return issuer, err
}

func writeEmergency(dir folder, kit *ca.Kit, chain []*x509.Certificate) error {
	return errors.Join(
		dir.write(ca.FolderIdentityBundle, string(ca.EncodeCertificates(kit.IdentityRoots...))),
		dir.write(ca.FolderGrantsBundle, string(ca.EncodeCertificates(kit.GrantRoots...))),
		dir.write(ca.FolderChain, string(ca.EncodeCertificates(chain...))))
}

func (a *app) sayIssued(dir folder, leaf *x509.Certificate, r emergency.Record) error {
	id, err := grant.ParseID(r.SPIFFEID, mustDomain(r.SPIFFEID))
	if err != nil {
		return err
	}
	out := emergencyIssued{string(dir), id.GrantID(), r.SPIFFEID, r.Serial, r.Issuer, leaf.NotAfter, r.Custodians, r.N}
	err = a.print(out, func(w *tabular) {
		w.field("folder", out.Folder)
		w.field("grant", out.Grant)
		w.field("name", out.SPIFFEID)
		w.field("serial", out.Serial)
		w.field("until", w.when(out.NotAfter))
		w.field("custodians", strings.Join(out.Custodians, ", "))
		w.field("journal", "record "+strconv.FormatUint(out.N, 10))
	})
	a.next("keep the kit's journal; once there is a cluster: hallpass emergency import KIT")
	return err
}

// mustDomain is the trust domain of a SPIFFE ID, the zero one of what is none.
func mustDomain(id string) spiffeid.TrustDomain {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return spiffeid.TrustDomain{}
	}
	return parsed.TrustDomain()
}

func (a *app) newEmergencyShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show KIT",
		Short: "Check a kit's journal, offline, and say what it has signed",
		Args:  exactArgs("KIT"),
		RunE: func(_ *cobra.Command, args []string) error {
			kit, err := ca.OpenKit(args[0])
			if err != nil {
				return err
			}
			records, err := kit.Journal()
			if err != nil {
				return err
			}
			return a.print(shownKit(kit, records), func(w *tabular) { kitTable(w, kit, records) })
		},
	}
}

func shownKit(kit *ca.Kit, records []emergency.Record) map[string]any {
	if records == nil {
		records = []emergency.Record{}
	}
	return map[string]any{
		"issuer": emergency.ID(kit.Issuer), "not_after": kit.Issuer.NotAfter, "threshold": kit.Threshold,
		"custodians": kit.Custodians, "records": records,
	}
}

func kitTable(w *tabular, kit *ca.Kit, records []emergency.Record) {
	w.field("issuer", emergency.ID(kit.Issuer))
	w.field("until", w.when(kit.Issuer.NotAfter))
	w.field("custodians", fmt.Sprintf("%d of %s", kit.Threshold, strings.Join(kit.Custodians, ", ")))
	w.field("signed", strconv.Itoa(len(records)))
	w.flush()
	if len(records) > 0 {
		w.row("N", "TIME", "SERIAL", "UNTIL", "CUSTODIANS", "GRANT", "REASON")
	}
	for _, r := range records {
		w.row(strconv.FormatUint(r.N, 10), r.Time.Format(time.RFC3339), r.Serial, r.NotAfter.Format(time.RFC3339),
			strings.Join(r.Custodians, "+"), r.SPIFFEID, r.Reason)
	}
}

// caEmergencyFlags are the flags of `ca emergency init`.
type caEmergencyFlags struct {
	dir, out, name string
	custodians     []string
	threshold      int
	life           time.Duration
}

func newCAEmergency(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "emergency",
		Short: "An issuer for when everything is gone, held by custodians",
	}
	var f caEmergencyFlags
	initialise := &cobra.Command{
		Use:   "init --dir FOLDER --out KIT --custodian NAME=AGE-PUBLIC-KEY --threshold N",
		Short: "Make an emergency issuer, which so many custodians open together",
		Long: `Make an emergency issuer of grants and its kit, in a new folder. The grants root
signs the issuer, and marks it: proxies refuse what it signs unless their
configuration says emergency: allow, and every record says what it was.

Its key is in the kit, encrypted. To open it takes --threshold custodians together,
at least two, each with a key that emergency keygen made. Name more than that:
keys get lost. One kit has one journal; make another kit for another place, and do
not use copies.`,
		Example: `  hallpass ca emergency init --dir ca --out kit --threshold 2 \
    --custodian grace=age1… --custodian linus=age1… --custodian edsger=age1…`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error { return a.caEmergency(f) },
	}
	flags := initialise.Flags()
	flags.StringVar(&f.dir, "dir", "", "`folder` of ca init")
	flags.StringVar(&f.out, "out", "", "`folder` to make: the kit")
	flags.StringVar(&f.name, "name", "emergency", "`name` of the issuer, for people")
	flags.StringArrayVar(&f.custodians, "custodian", nil, "`name=key` of a custodian; repeat for each. key is a public key, or @FILE that holds one")
	flags.IntVar(&f.threshold, "threshold", 0, "how many custodians act together; at least 2")
	flags.DurationVar(&f.life, "life", ca.EmergencyLife, "how long the issuer lives; at most a year")
	cmd.AddCommand(initialise)
	return cmd
}

func (a *app) caEmergency(f caEmergencyFlags) error {
	switch {
	case f.dir == "":
		return usagef("no folder given: --dir FOLDER")
	case f.out == "":
		return usagef("no folder for the kit given: --out KIT")
	case f.threshold < emergency.MinCustodians:
		return usagef("--threshold %d: at least %d custodians act together", f.threshold, emergency.MinCustodians)
	}
	o := ca.EmergencyOptions{Name: f.name, Threshold: f.threshold, Life: f.life, Open: kms.Open, Now: a.now()}
	for _, text := range f.custodians {
		name, key, ok := strings.Cut(text, "=")
		if !ok {
			return usagef("--custodian %s: want NAME=PUBLIC-KEY", text)
		}
		if file, ok := strings.CutPrefix(key, "@"); ok {
			data, err := os.ReadFile(file)
			if err != nil {
				return usagef("--custodian %s: %w", name, err)
			}
			key = strings.TrimSpace(string(data))
		}
		o.Custodians = append(o.Custodians, ca.Custodian{Name: name, Recipient: key})
	}
	cert, err := ca.InitEmergency(f.dir, f.out, o)
	if err != nil {
		return err
	}
	out := map[string]any{
		"kit": f.out, "issuer": emergency.ID(cert), "name": cert.Subject.CommonName, "not_after": cert.NotAfter,
		"threshold": f.threshold, "custodians": len(o.Custodians),
	}
	err = a.print(out, func(w *tabular) {
		w.field("kit", f.out)
		w.field("issuer", emergency.ID(cert))
		w.field("name", cert.Subject.CommonName)
		w.field("until", w.when(cert.NotAfter))
		w.field("custodians", fmt.Sprintf("%d of %d", f.threshold, len(o.Custodians)))
	})
	a.next("tell the cluster of it: hallpass emergency register %s", f.out)
	return err
}
