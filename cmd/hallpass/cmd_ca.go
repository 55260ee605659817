package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/ca/kms"
	"github.com/hallpass/hallpass/internal/config"
	"github.com/hallpass/hallpass/policy/condition"
)

func newCACommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "The offline roots of a cluster: make them, sign nodes, go over to new ones",
	}
	cmd.AddCommand(newCAInit(a), newCASignNode(a), newCARotate(a), newCARetire(a), newCADeny(a), newCAEmergency(a))
	return cmd
}

// caInitFlags are the flags of `ca init`.
type caInitFlags struct {
	dir, identityTD, grantTD, seed string
	admins                         []string
	dev                            bool
	keys                           rootKeyFlags
}

func newCAInit(a *app) *cobra.Command {
	var f caInitFlags
	cmd := &cobra.Command{
		Use:   "init --dir FOLDER --trust-domain DOMAIN --admin NAME,NAME,NAME",
		Short: "Make the roots of a new cluster and name its first admins",
		Long: `Make the roots of a new cluster in a new folder, one for identities and one for
grants, and name its first admins. Each admin gets an identity, in
FOLDER/persons/NAME, that lives 30 days.

Whoever has the folder can be anyone: keep it offline. Only sign-node and
identity issue --root need it. An existing folder is never touched.

With --kms the roots' keys are made in a KMS, which they never leave, under the
two names given. A key that is there already is refused, unless --existing-keys
says that both are to be taken, as where a ceremony made them. KMS are opened by
hallpass-kms alone. A PIN comes from a file or a variable:

  pkcs11:module-path=/usr/lib/x.so;token=hallpass?pin-source=/run/hallpass/pin

A seed file may name more persons, groups and a first policy:

  persons: [{name: alice, ids: ["spiffe://acme.test/user/alice"]}]
  groups:  [{name: payments-owners, members: [alice]}]
  policy: |
    version: 1
    rules: []`,
		Example: `  hallpass ca init --dir ca --trust-domain acme.test --admin ada,grace,linus
  hallpass-kms ca init --dir ca --trust-domain acme.test --admin ada,grace,linus \
    --kms 'pkcs11:module-path=/usr/lib/x.so;token=hallpass?pin-source=/run/hallpass/pin' \
    --identity-root-key 'pkcs11:id=01;object=identity-root' --grants-root-key 'pkcs11:id=02;object=grants-root'`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.caInit(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "`folder` to make")
	flags.StringVar(&f.identityTD, "trust-domain", "", "trust `domain` of identities: acme.test")
	flags.StringVar(&f.grantTD, "grant-trust-domain", "", "trust `domain` of grants (default grants. + the trust domain)")
	flags.StringSliceVar(&f.admins, "admin", nil, "`name` of a first admin; at least three, repeat or separate by commas")
	flags.StringVar(&f.seed, "seed", "", "YAML `file` with more persons, groups and the first policy")
	flags.BoolVar(&f.dev, "dev", false, "mark the roots as development roots, which servers take on loopback only")
	f.keys.add(cmd)
	return cmd
}

// seedFile is the YAML file of --seed.
type seedFile struct {
	Persons []struct {
		Name string   `yaml:"name"`
		IDs  []string `yaml:"ids"`
		Owns []string `yaml:"owns"`
	} `yaml:"persons"`
	Groups []struct {
		Name    string   `yaml:"name"`
		Members []string `yaml:"members"`
	} `yaml:"groups"`
	Policy string `yaml:"policy"`
}

func readSeed(ctx context.Context, file string) (*ca.Seed, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // no file is no seed
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var in seedFile
	if err := config.Decode(file, text, &in); err != nil {
		return nil, err
	}
	if in.Policy != "" {
		if err := checkSeedPolicy(ctx, in); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	seed := &ca.Seed{Policy: in.Policy}
	for _, p := range in.Persons {
		seed.Persons = append(seed.Persons, ca.Person{Name: p.Name, IDs: p.IDs, Owns: p.Owns})
	}
	for _, g := range in.Groups {
		seed.Groups = append(seed.Groups, ca.Group{Name: g.Name, Members: g.Members})
	}
	return seed, nil
}

// checkSeedPolicy finds now what the cluster would refuse when it starts for the first time.
func checkSeedPolicy(ctx context.Context, in seedFile) error {
	s, err := condition.Check(ctx, []byte(in.Policy))
	if err != nil {
		return err
	}
	known := []string{ca.AdminGroup}
	for _, g := range in.Groups {
		known = append(known, g.Name)
	}
	for _, name := range s.Policy().Groups() {
		if !slices.Contains(known, name) {
			return fmt.Errorf("policy: there is no group %q", name)
		}
	}
	return nil
}

// madeRoots is what `ca init` answers.
type madeRoots struct {
	Folder           string      `json:"folder"`
	Cluster          string      `json:"cluster"`
	TrustDomain      string      `json:"trust_domain"`
	GrantTrustDomain string      `json:"grant_trust_domain"`
	Dev              bool        `json:"dev"`
	NotAfter         time.Time   `json:"not_after"`
	Admins           []madeAdmin `json:"admins"`
}

type madeAdmin struct {
	Name     string    `json:"name"`
	SPIFFEID string    `json:"spiffe_id"`
	Folder   string    `json:"folder"`
	NotAfter time.Time `json:"not_after"`
}

func (a *app) caInit(ctx context.Context, f caInitFlags) error {
	if f.dir == "" {
		return usagef("no folder given: --dir FOLDER")
	}
	td, err := trustDomainFlag("--trust-domain", f.identityTD)
	if err != nil {
		return err
	}
	o := ca.InitOptions{TrustDomain: td, Admins: f.admins, Dev: f.dev, Now: a.now()}
	if f.grantTD != "" {
		if o.GrantTrustDomain, err = trustDomainFlag("--grant-trust-domain", f.grantTD); err != nil {
			return err
		}
	}
	if len(f.admins) < ca.MinAdmins {
		return usagef("%d admins: every change needs its author and two others, so name at least %d with --admin", len(f.admins), ca.MinAdmins)
	}
	if o.Seed, err = readSeed(ctx, f.seed); err != nil {
		return err
	}
	if o.Keys, err = f.keys.rootKeys(); err != nil {
		return err
	}
	o.Open = kms.Open
	if err := ca.Init(f.dir, o); err != nil {
		return err
	}
	made, err := describeRoots(f.dir, f.admins)
	if err != nil {
		return err
	}
	made.Dev = f.dev
	err = a.print(made, func(w *tabular) {
		w.field("folder", made.Folder)
		w.field("cluster", made.Cluster)
		w.field("identities", made.TrustDomain)
		w.field("grants", made.GrantTrustDomain)
		w.field("until", w.when(made.NotAfter))
		for _, admin := range made.Admins {
			w.field("admin", fmt.Sprintf("%s in %s", admin.SPIFFEID, admin.Folder))
		}
	})
	a.next("on each node: hallpass server init --dir keys --node n1 --trust-domain %s --raft-address HOST:PORT --api-address HOST:PORT", made.TrustDomain)
	return err
}

func describeRoots(dir string, admins []string) (madeRoots, error) {
	identity, err := readCertificate(filepath.Join(dir, ca.IdentityRootFile))
	if err != nil {
		return madeRoots{}, err
	}
	grants, err := readCertificate(filepath.Join(dir, ca.GrantsRootFile))
	if err != nil {
		return madeRoots{}, err
	}
	made := madeRoots{
		Folder:           dir,
		Cluster:          ca.ClusterID(identity, grants),
		TrustDomain:      strings.TrimPrefix(spiffeOf(identity), "spiffe://"),
		GrantTrustDomain: strings.TrimPrefix(spiffeOf(grants), "spiffe://"),
		NotAfter:         identity.NotAfter,
	}
	for _, name := range admins {
		folder := filepath.Join(dir, ca.PersonsDir, name)
		cert, err := readCertificate(filepath.Join(folder, ca.FolderChain))
		if err != nil {
			return madeRoots{}, err
		}
		made.Admins = append(made.Admins, madeAdmin{Name: name, SPIFFEID: spiffeOf(cert), Folder: folder, NotAfter: cert.NotAfter})
	}
	return made, nil
}

func trustDomainFlag(flag, value string) (spiffeid.TrustDomain, error) {
	if value == "" {
		return spiffeid.TrustDomain{}, usagef("no trust domain given: %s DOMAIN", flag)
	}
	td, err := spiffeid.TrustDomainFromString(value)
	if err != nil {
		return td, usagef("%s %s: %w", flag, value, err)
	}
	return td, nil
}

// signFlags are the flags of `ca sign-node`.
type signFlags struct {
	dir     string
	domains []string
	ranges  []string
	replace bool
	renew   bool
	add     bool
	drop    []string
	life    time.Duration
}

func newCASignNode(a *app) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign-node REQUEST... --dir FOLDER",
		Short: "Make nodes members of the cluster, and write its manifest",
		Long: `Make nodes members of the cluster, and write its manifest. REQUEST is the
node-request.json of server init, one for each node, all in one call: compare
the fingerprint shown here with the one shown there.

Each node gets an issuer of identities, an issuer of grants and its API
certificate, for 90 days, or for 7 where the roots are in a KMS and a signer
renews them. FOLDER/manifest.json is public; every node gets the same one. The
same requests again change nothing.

Issuers may name hosts under --dns-domain and --ip-range only: by default the
trust domain, localhost and loopback.

With --add it signs the nodes of the REQUESTs and leaves those in the manifest as
they are; --drop takes nodes out. The manifest has the next sequence number then,
and the running cluster takes it with cluster adopt.

With --renew it signs successors for nodes that are members already, ahead of
the end of what they have, one FOLDER/renewed/NODE.json each. The running cluster
takes them with issuer install.`,
		Example: `  hallpass ca sign-node --dir ca n1/node-request.json n2/node-request.json n3/node-request.json
  hallpass ca sign-node --dir ca --add n4/node-request.json
  hallpass ca sign-node --dir ca --drop n3
  hallpass ca sign-node --dir ca --renew n1/node-request.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && len(f.drop) == 0 {
				return usagef("%s: no REQUEST given", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.signNodes(args, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "`folder` of ca init")
	flags.StringSliceVar(&f.domains, "dns-domain", nil, "`domain` under which services may have names; repeat for more")
	flags.StringSliceVar(&f.ranges, "ip-range", nil, "addresses that services may have, as a `prefix` such as 10.0.0.0/8; repeat for more")
	flags.BoolVar(&f.replace, "replace", false, "make another cluster of these nodes: a new manifest instead of the one that is there")
	flags.BoolVar(&f.renew, "renew", false, "sign successors for members of the cluster; its manifest stays")
	flags.BoolVar(&f.add, "add", false, "sign these nodes, and leave those in the manifest as they are")
	flags.StringSliceVar(&f.drop, "drop", nil, "take the `node` out of the manifest; repeat for more")
	flags.DurationVar(&f.life, "life", 0, "how long the certificates live, at most 90 days (default 90 days; 7 with roots in a KMS)")
	return cmd
}

// signedNodes is what `ca sign-node` answers.
type signedNodes struct {
	Manifest string       `json:"manifest"`
	Cluster  string       `json:"cluster"`
	Sequence uint64       `json:"sequence"`
	Nodes    []signedNode `json:"nodes"`
}

type signedNode struct {
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint,omitempty"` // of its request, where it was signed now
	APIAddress  string    `json:"api_address"`
	RaftAddress string    `json:"raft_address"`
	NotAfter    time.Time `json:"not_after"`
}

func (a *app) signNodes(files []string, f signFlags) error {
	if f.dir == "" {
		return usagef("no folder given: --dir FOLDER")
	}
	edits := f.add || len(f.drop) > 0
	if f.replace && f.renew {
		return usagef("--replace and --renew: one of them")
	}
	if edits && (f.replace || f.renew) {
		return usagef("--add and --drop change the manifest, --replace and --renew do something else: one of them")
	}
	o := ca.SignOptions{DNSDomains: f.domains, Replace: f.replace, Add: f.add, Drop: f.drop, Life: f.life, Open: kms.Open, Now: a.now()}
	for _, text := range f.ranges {
		_, ipNet, err := net.ParseCIDR(text)
		if err != nil {
			return usagef("--ip-range %q is no prefix such as 10.0.0.0/8", text)
		}
		o.IPRanges = append(o.IPRanges, ipNet)
	}
	prints := make(map[string]string)
	var requests []ca.NodeRequest
	for _, file := range files {
		request, err := ca.LoadNodeRequest(file)
		if err != nil {
			return err
		}
		if prints[request.ID], err = request.Fingerprint(); err != nil {
			return err
		}
		requests = append(requests, request)
	}
	if f.renew {
		return a.renewNodes(f.dir, requests, prints, o)
	}
	m, err := ca.SignNodes(f.dir, requests, o)
	if errors.Is(err, ca.ErrExists) {
		return fmt.Errorf("%w: --add signs new nodes, --replace all of them again", err)
	}
	if err != nil {
		return err
	}
	out := signedNodes{Manifest: filepath.Join(f.dir, ca.ManifestFile), Cluster: m.Cluster, Sequence: m.Sequence}
	for _, n := range m.Nodes {
		out.Nodes = append(out.Nodes, signedNode{
			ID: n.ID, Fingerprint: prints[n.ID], APIAddress: n.APIAddress, RaftAddress: n.RaftAddress,
			NotAfter: slices.MinFunc([]time.Time{n.IdentityIssuer.NotAfter, n.GrantIssuer.NotAfter, n.APICertificate.NotAfter}, time.Time.Compare),
		})
	}
	err = a.print(out, func(w *tabular) {
		w.field("manifest", out.Manifest)
		w.field("cluster", out.Cluster)
		w.field("sequence", strconv.FormatUint(out.Sequence, 10))
		w.line("")
		w.row("NODE", "API", "RAFT", "UNTIL", "REQUEST")
		for _, n := range out.Nodes {
			w.row(n.ID, n.APIAddress, n.RaftAddress, w.when(n.NotAfter), n.Fingerprint)
		}
	})
	if edits {
		a.next("to the cluster: hallpass cluster adopt %s", out.Manifest)
	} else {
		a.next("copy %s to every node, then: hallpass server --config FILE", out.Manifest)
	}
	return err
}
