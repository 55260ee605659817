package api

import "time"

// InstallInput is the body of POST /v1/issuers: the successors of a node's
// issuers and of its API certificate, signed by the roots. An empty one stays as
// it is.
type InstallInput struct {
	Node           string `json:"node" minLength:"1" maxLength:"63"`
	IdentityIssuer string `json:"identity_issuer,omitempty" maxLength:"8192" doc:"PEM"`
	GrantIssuer    string `json:"grant_issuer,omitempty" maxLength:"8192" doc:"PEM"`
	APICertificate string `json:"api_certificate,omitempty" maxLength:"8192" doc:"PEM"`
}

// Installed says what a node got.
type Installed struct {
	Node    string   `json:"node"`
	Issuers []string `json:"issuers" doc:"ids of the issuers that are new; none when the node had them all"`
}

// NodeIssuers are the issuers of all nodes, as one node knows them.
type NodeIssuers struct {
	Node    string       `json:"node" doc:"the node that answered"`
	Now     time.Time    `json:"now" doc:"its clock"`
	Members []string     `json:"members" doc:"ids of the nodes that are sent the log"`
	Issuers []NodeIssuer `json:"issuers" doc:"those that have not ended"`
}

// NodeIssuer is one issuer with its certificate, which is public.
type NodeIssuer struct {
	ID          string    `json:"id" doc:"hex SHA-256 of its certificate"`
	Node        string    `json:"node"`
	Role        string    `json:"role" enum:"identity,grant"`
	NotAfter    time.Time `json:"not_after"`
	Denied      bool      `json:"denied" doc:"out of use for good, with every issuer of its key"`
	Orphan      bool      `json:"orphan" doc:"out of use with its root; its key may be signed by another"`
	Retired     bool      `json:"retired" doc:"its node was removed, its keys destroyed"`
	Certificate string    `json:"certificate" doc:"PEM"`
}

// NodeRequest is a node's request to have its keys signed, for whoever holds the
// roots.
type NodeRequest struct {
	Node    string `json:"node"`
	Request string `json:"request" doc:"the text of its node-request.json"`
}

// RootsInput is the body of POST /v1/roots.
type RootsInput struct {
	Document string `json:"document" minLength:"1" maxLength:"49152" doc:"one line, as ca rotate and ca retire write it"`
}

// Roots are the roots of both trust domains, and the documents that say so.
type Roots struct {
	Identity RootSet `json:"identity"`
	Grants   RootSet `json:"grants"`
}

// RootSet is the roots of one trust domain.
type RootSet struct {
	TrustDomain string   `json:"trust_domain"`
	Sequence    uint64   `json:"sequence" doc:"of the document in force; 0: the founding roots"`
	Roots       string   `json:"roots" doc:"those in force, PEM"`
	Documents   []string `json:"documents" doc:"every document that was in force, the oldest first: who follows checks their signatures"`
}
