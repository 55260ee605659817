package api

// ManifestInput is the body of POST /v1/cluster/manifest.
type ManifestInput struct {
	Manifest string `json:"manifest" minLength:"1" doc:"the text of manifest.json, as ca sign-node wrote it"`
}

// NodeInput is the body of the routes that need nothing but the node.
type NodeInput struct{}

// RemoveNodeInput is the body of POST /v1/nodes/{id}/remove.
type RemoveNodeInput struct {
	Reason  string `json:"reason" minLength:"1" maxLength:"2000"`
	Retired bool   `json:"retired,omitempty" doc:"its keys were destroyed: what its issuers signed stays good. Otherwise they are denied"`

	WithoutAuditEntries bool `json:"without_audit_entries,omitempty" doc:"also where this may be the only node that has some of the audit log's entries: they are lost with it"`
}
