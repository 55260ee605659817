package main

import (
	"net"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca"
)

// serverInitFlags are the flags of `server init`.
type serverInitFlags struct {
	dir, node, trustDomain, raftAddress, apiAddress string
	dns, ips                                        []string
	newKeys                                         bool
}

func newServerInitCommand(a *app) *cobra.Command {
	var f serverInitFlags
	cmd := &cobra.Command{
		Use:   "init --dir FOLDER --node NAME --trust-domain DOMAIN --raft-address HOST:PORT --api-address HOST:PORT",
		Short: "Make a node's keys on the node, and the request to sign them",
		Long: `Make a node's keys on the node, and the request to sign them. The keys never
leave FOLDER; node-request.json is public and goes to ca sign-node.

Run it again after a crash or with another address: keys that are there stay.
--new-issuer-keys makes new ones for the issuers and the API beside them, and a
request for ca sign-node --renew.`,
		Example: `  hallpass server init --dir keys --node n1 --trust-domain acme.test \
    --raft-address n1.acme.test:7443 --api-address n1.acme.test:8443`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error { return a.serverInit(f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "`folder` for the node's keys")
	flags.StringVar(&f.node, "node", "", "`name` of the node, unique in the cluster")
	flags.StringVar(&f.trustDomain, "trust-domain", "", "trust `domain` of identities: acme.test")
	flags.StringVar(&f.raftAddress, "raft-address", "", "`address` that the other nodes dial, host:port")
	flags.StringVar(&f.apiAddress, "api-address", "", "`address` that callers dial, host:port")
	flags.StringSliceVar(&f.dns, "dns", nil, "further DNS `name` that callers dial; repeat for more")
	flags.StringSliceVar(&f.ips, "ip", nil, "further IP `address` that callers dial; repeat for more")
	flags.BoolVar(&f.newKeys, "new-issuer-keys", false, "make new keys for the issuers and the API, to be signed by ca sign-node --renew")
	return cmd
}

// madeNode is what `server init` answers.
type madeNode struct {
	Node        string   `json:"node"`
	Folder      string   `json:"folder"`
	Request     string   `json:"request"`
	Fingerprint string   `json:"fingerprint"`
	RaftAddress string   `json:"raft_address"`
	APIAddress  string   `json:"api_address"`
	DNSNames    []string `json:"dns_names"`
	IPs         []net.IP `json:"ips"`
	AuditKey    string   `json:"audit_key"`
}

func (a *app) serverInit(f serverInitFlags) error {
	for _, needed := range []struct{ flag, value string }{
		{"--dir FOLDER", f.dir},
		{"--node NAME", f.node},
		{"--raft-address HOST:PORT", f.raftAddress},
		{"--api-address HOST:PORT", f.apiAddress},
	} {
		if needed.value == "" {
			return usagef("not given: %s", needed.flag)
		}
	}
	td, err := trustDomainFlag("--trust-domain", f.trustDomain)
	if err != nil {
		return err
	}
	o := ca.NodeOptions{ID: f.node, TrustDomain: td, RaftAddress: f.raftAddress, APIAddress: f.apiAddress, DNSNames: f.dns, NewKeys: f.newKeys}
	for _, text := range f.ips {
		ip := net.ParseIP(text)
		if ip == nil {
			return usagef("--ip %q is no IP address", text)
		}
		o.IPs = append(o.IPs, ip)
	}
	request, err := ca.NewNode(f.dir, o)
	if err != nil {
		return err
	}
	fingerprint, err := request.Fingerprint()
	if err != nil {
		return err
	}
	made := madeNode{
		Node: request.ID, Folder: f.dir, Request: filepath.Join(f.dir, ca.NodeRequestFile), Fingerprint: fingerprint,
		RaftAddress: request.RaftAddress, APIAddress: request.APIAddress,
		DNSNames: request.DNSNames, IPs: request.IPs, AuditKey: request.AuditKey,
	}
	err = a.print(made, func(w *tabular) {
		names := made.DNSNames
		for _, ip := range made.IPs {
			names = append(names, ip.String())
		}
		w.field("node", made.Node)
		w.field("keys", made.Folder)
		w.field("request", made.Request)
		w.field("fingerprint", made.Fingerprint)
		w.field("raft", made.RaftAddress)
		w.field("api", made.APIAddress+" as "+strings.Join(names, ", "))
		w.field("audit key", made.AuditKey)
	})
	a.next("where the roots are: hallpass ca sign-node --dir FOLDER %s …, with the requests of all nodes", made.Request)
	return err
}
