package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/ca/kms"
)

func (a *app) newIdentityCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Certificates that say who someone is: issue",
	}
	cmd.AddCommand(a.newIdentityIssue())
	return cmd
}

// identityFlags are the flags of `identity issue`.
type identityFlags struct {
	dns  []string
	ips  []string
	ttl  time.Duration
	out  string
	root string
}

func (a *app) newIdentityIssue() *cobra.Command {
	var f identityFlags
	cmd := &cobra.Command{
		Use:   "issue ID --out FOLDER",
		Short: "Issue an identity into a folder",
		Long: `Issue an identity into a folder: cert.pem, key.pem (made here), and the roots to
trust. ID is a SPIFFE ID, or its path: service/payments.

By default the cluster issues it, to an admin, for services and nodes. With
--root the offline folder of ca init does, for the persons of a new cluster:
nobody is asked, so keep that folder as you keep its keys.

Run it again with the same --out to renew: the key stays.`,
		Example: `  hallpass identity issue service/payments --dns payments.acme.test --out svid
  hallpass identity issue user/alice --root ca --out alice`,
		Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.out == "" {
				return usagef("no folder given: --out FOLDER")
			}
			if f.root != "" {
				return a.issueOffline(args[0], f)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.issueIdentity(ctx, c, args[0], f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.dns, "dns", nil, "DNS `name` that clients of the service dial; repeat for more")
	flags.StringSliceVar(&f.ips, "ip", nil, "IP `address` that clients of the service dial; repeat for more")
	flags.DurationVar(&f.ttl, "ttl", 0, "how long it lives (default 24h; 720h with --root; at most 720h)")
	flags.StringVar(&f.out, "out", "", "`folder` to write")
	flags.StringVar(&f.root, "root", "", "offline `folder` of ca init: sign with its root")
	return cmd
}

// fullID makes a SPIFFE ID of a path such as service/payments.
func fullID(id string, td spiffeid.TrustDomain) (spiffeid.ID, error) {
	if !strings.HasPrefix(id, "spiffe://") {
		id = td.IDString() + "/" + strings.TrimPrefix(id, "/")
	}
	full, err := spiffeid.FromString(id)
	if err != nil {
		return full, usagef("%q is no SPIFFE ID: %w", id, err)
	}
	if full.Path() == "" {
		return full, usagef("%q names a trust domain, not a member: add a path such as /service/payments", id)
	}
	return full, nil
}

func (a *app) issueIdentity(ctx context.Context, c *api.Client, id string, f identityFlags) error {
	me, err := c.WhoAmI(ctx)
	if err != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(me.TrustDomain)
	if err != nil {
		return fmt.Errorf("the cluster's trust domain: %w", err)
	}
	full, err := fullID(id, td)
	if err != nil {
		return err
	}
	dir := folder(f.out)
	if err := dir.claim(full.String()); err != nil {
		return err
	}
	csr, err := dir.csr()
	if err != nil {
		return err
	}
	cert, err := c.IssueIdentity(ctx, api.IdentityInput{
		CSR: csr, SPIFFEID: full.String(), DNSNames: f.dns, IPAddresses: f.ips, TTL: api.Duration(f.ttl),
	})
	if err != nil {
		return err
	}
	return a.fillFolder(ctx, c, dir, cert)
}

// offlineSkew is how far back an offline certificate begins, for verifiers whose clocks are slow.
const offlineSkew = time.Minute

func (a *app) issueOffline(id string, f identityFlags) error {
	root, err := readCertificate(filepath.Join(f.root, "identity-root.crt"))
	if err != nil {
		return fmt.Errorf("--root %s is not the folder of ca init: %w", f.root, err)
	}
	if len(root.URIs) != 1 {
		return fmt.Errorf("--root %s: its identity-root.crt names no trust domain", f.root)
	}
	td, err := spiffeid.TrustDomainFromURI(root.URIs[0])
	if err != nil {
		return fmt.Errorf("--root %s: %w", f.root, err)
	}
	full, err := fullID(id, td)
	if err != nil {
		return err
	}
	spec := ca.IdentitySpec{ID: full, DNSNames: f.dns, Now: a.now(), TTL: f.ttl, Skew: offlineSkew}
	if spec.TTL == 0 {
		spec.TTL = ca.MaxIdentityTTL
	}
	for _, text := range f.ips {
		ip := net.ParseIP(text)
		if ip == nil {
			return usagef("--ip %q is no IP address", text)
		}
		spec.IPs = append(spec.IPs, ip)
	}
	return a.signOffline(spec, folder(f.out), f.root)
}

func (a *app) signOffline(spec ca.IdentitySpec, dir folder, root string) error {
	if err := dir.claim(spec.ID.String()); err != nil {
		return err
	}
	key, err := dir.key()
	if err != nil {
		return err
	}
	spec.PublicKey = key.Public()
	chain, err := ca.IssueWithKMS(root, spec, kms.Open)
	if err != nil {
		return err
	}
	identities, grants, err := ca.OfflineRoots(root)
	if err != nil {
		return err
	}
	for name, roots := range map[string][]*x509.Certificate{ca.FolderIdentityBundle: identities, ca.FolderGrantsBundle: grants} {
		if err := dir.write(name, string(ca.EncodeCertificates(roots...))); err != nil {
			return err
		}
	}
	if err := dir.write(ca.FolderChain, string(ca.EncodeCertificates(chain...))); err != nil {
		return err
	}
	issued := certificateFiles{Folder: string(dir), Certificate: api.Certificate{
		Certificate: string(ca.EncodeCertificates(chain...)), SPIFFEID: spec.ID.String(),
		Serial: ca.SerialText(chain[0].SerialNumber), NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter,
		RenewAfter: chain[0].NotBefore.Add(chain[0].NotAfter.Sub(chain[0].NotBefore) * 2 / 3),
	}}
	return a.print(issued, func(w *tabular) { issuedFields(w, issued) })
}
