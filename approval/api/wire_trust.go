package api

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
