package api

import (
	"context"
	"time"
)

// The inputs of the operations. huma looks into no embedded type that is not
// exported, so each spells its parameters out.
type (
	noInput struct {
		Stale bool `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	idInput struct {
		ID    string `path:"id" maxLength:"128"`
		Stale bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	// A state that there is not would find nothing, and look as if there were nothing.
	requestsInput struct {
		State     string `query:"state" enum:"pending,approved,denied,cancelled,expired"`
		Service   string `query:"service" maxLength:"63"`
		Subject   string `query:"subject" maxLength:"2048"`
		Requester string `query:"requester" maxLength:"2048"`
		Limit     int    `query:"limit" minimum:"1" maximum:"1000" doc:"absent means 100"`
		Cursor    string `query:"cursor" maxLength:"512" doc:"next of the page before"`
		Stale     bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	grantsInput struct { // the fields of requestsInput
		State     string `query:"state" enum:"scheduled,active,revoked,returned,expired"`
		Service   string `query:"service" maxLength:"63"`
		Subject   string `query:"subject" maxLength:"2048"`
		Requester string `query:"requester" maxLength:"2048"`
		Limit     int    `query:"limit" minimum:"1" maximum:"1000" doc:"absent means 100"`
		Cursor    string `query:"cursor" maxLength:"512" doc:"next of the page before"`
		Stale     bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	changesInput struct {
		State  string `query:"state" enum:"pending,applied,denied,cancelled,expired"`
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" doc:"absent means 100"`
		Cursor string `query:"cursor" maxLength:"512" doc:"next of the page before"`
		Stale  bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	waitInput struct {
		ID    string `path:"id" maxLength:"128"`
		Wait  string `query:"wait" maxLength:"16" doc:"block this long at most, until the request has changed after index" example:"30s"`
		Index uint64 `query:"index" doc:"X-Hallpass-Index of the answer before"`
		Stale bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	entriesInput struct {
		From  uint64 `query:"from" doc:"index of the first entry"`
		Limit int    `query:"limit" minimum:"1" maximum:"1000" doc:"absent means 100"`
		Stale bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	inclusionInput struct {
		Index uint64 `query:"index" required:"true"`
		Size  uint64 `query:"size" doc:"absent means the log's size now"`
		Stale bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	consistencyInput struct {
		Old   uint64 `query:"old" required:"true"`
		New   uint64 `query:"new" doc:"absent means the log's size now"`
		Stale bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
	}
	postInput[T any] struct {
		Body T
	}
	postIDInput[T any] struct {
		ID   string `path:"id" maxLength:"128"`
		Body T
	}
	actionInput struct {
		ID   string `path:"id" maxLength:"128"`
		Body *struct{}
	}
)

func (in requestsInput) filter() Filter {
	return Filter{
		State: in.State, Service: in.Service, Subject: in.Subject, Requester: in.Requester,
		Page: Page{Limit: in.Limit, Cursor: in.Cursor},
	}
}

func (in waitInput) wait() (Wait, error) {
	if in.Wait == "" {
		return Wait{}, nil
	}
	d, err := time.ParseDuration(in.Wait)
	if err != nil || d < 0 {
		return Wait{}, NewProblem(CodeInvalid, "wait: want a form such as 30s", "")
	}
	return Wait{Index: in.Index, For: min(d, MaxWait)}, nil
}

// routes lists every operation: what it is called, where it is, and which
// method of the Backend answers it.
func (h *Handler) routes(r *registrar) {
	h.requestRoutes(r)
	h.lifeRoutes(r)
	h.catalogueRoutes(r)
	h.grantRoutes(r)
	h.changeRoutes(r)
	h.directoryRoutes(r)
	h.standInRoutes(r)
	h.trustRoutes(r)
	h.memberRoutes(r)
	h.emergencyRoutes(r)
	h.notifyRoutes(r)
	h.auditRoutes(r)
	h.snapshotRoute(r)
	h.streamRoutes(r)
}

func (h *Handler) requestRoutes(r *registrar) {
	b := h.backend
	r.createRequest(b)
	get(r, "listRequests", "/v1/requests", "Requests that the caller may see, newest first",
		func(ctx context.Context, in *requestsInput) (RequestList, error) {
			return b.Requests(ctx, callFrom(ctx, in.Stale), in.filter())
		})
	r.getRequest(b)
	post(r, "decideRequest", "/v1/requests/{id}/decisions", "Approve or deny",
		func(ctx context.Context, in *postIDInput[DecisionInput]) (Request, error) {
			return b.DecideRequest(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "cancelRequest", "/v1/requests/{id}/cancel", "Withdraw a pending request",
		func(ctx context.Context, in *actionInput) (Request, error) {
			return b.CancelRequest(ctx, callFrom(ctx, false), in.ID)
		})
}

func (h *Handler) grantRoutes(r *registrar) {
	b := h.backend
	get(r, "listGrants", "/v1/grants", "Grants that the caller may see, newest first",
		func(ctx context.Context, in *grantsInput) (GrantList, error) {
			return b.Grants(ctx, callFrom(ctx, in.Stale), requestsInput(*in).filter())
		})
	get(r, "getGrant", "/v1/grants/{id}", "A grant and its certificates' records",
		func(ctx context.Context, in *idInput) (Grant, error) {
			return b.Grant(ctx, callFrom(ctx, in.Stale), in.ID)
		})
	post(r, "mintCertificate", "/v1/grants/{id}/certificate", "Mint a grant certificate, the first or the next; for the grant's subject",
		func(ctx context.Context, in *postIDInput[CertificateInput]) (Certificate, error) {
			return b.GrantCertificate(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "revokeGrant", "/v1/grants/{id}/revoke", "End a grant now",
		func(ctx context.Context, in *postIDInput[RevokeInput]) (Grant, error) {
			return b.RevokeGrant(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "issueIdentity", "/v1/identities", "Mint an identity for a service or a node; for admins",
		func(ctx context.Context, in *postInput[IdentityInput]) (Certificate, error) {
			return b.IssueIdentity(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "blockSubject", "/v1/subjects/block", "End all grants of a subject and let none be made; for admins",
		func(ctx context.Context, in *postInput[BlockInput]) (Block, error) {
			return b.BlockSubject(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "denyIssuer", "/v1/issuers/{id}/deny", "Take an issuer's certificates out of use for good; for admins",
		func(ctx context.Context, in *postIDInput[ReasonInput]) (Issuer, error) {
			return b.DenyIssuer(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "reportCertificates", pathSeen, "Have certificates that a proxy was shown looked up, by the answering node; for services",
		func(ctx context.Context, in *postInput[SeenInput]) (Seen, error) {
			return b.ReportCertificates(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "anchorAccess", "/v1/access/anchors", "Write down in the audit log how long a proxy's access log is, and its root; for services",
		func(ctx context.Context, in *postInput[AnchorInput]) (Anchored, error) {
			return b.AnchorAccess(ctx, callFrom(ctx, false), in.Body)
		})
}

func (h *Handler) changeRoutes(r *registrar) {
	b := h.backend
	post(r, "proposeChange", "/v1/changes", "Propose a change of policy, groups or persons; for admins",
		func(ctx context.Context, in *postInput[ChangeInput]) (Change, error) {
			return b.ProposeChange(ctx, callFrom(ctx, false), in.Body)
		})
	get(r, "listChanges", "/v1/changes", "Changes, newest first",
		func(ctx context.Context, in *changesInput) (ChangeList, error) {
			return b.Changes(ctx, callFrom(ctx, in.Stale), in.State, Page{Limit: in.Limit, Cursor: in.Cursor})
		})
	get(r, "getChange", "/v1/changes/{id}", "A change",
		func(ctx context.Context, in *idInput) (Change, error) {
			return b.Change(ctx, callFrom(ctx, in.Stale), in.ID)
		})
	post(r, "decideChange", "/v1/changes/{id}/decisions", "Approve or deny a change; for admins other than its author",
		func(ctx context.Context, in *postIDInput[ChangeDecisionInput]) (Change, error) {
			return b.DecideChange(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "cancelChange", "/v1/changes/{id}/cancel", "Withdraw a pending change",
		func(ctx context.Context, in *actionInput) (Change, error) {
			return b.CancelChange(ctx, callFrom(ctx, false), in.ID)
		})
}

func (h *Handler) directoryRoutes(r *registrar) {
	b := h.backend
	get(r, "whoami", "/v1/whoami", "Who the server takes the caller for",
		func(ctx context.Context, in *noInput) (WhoAmI, error) { return b.WhoAmI(ctx, callFrom(ctx, in.Stale)) })
	get(r, "getPolicy", "/v1/policy", "The policy in force",
		func(ctx context.Context, in *noInput) (Policy, error) { return b.Policy(ctx, callFrom(ctx, in.Stale)) })
	get(r, "getGroups", "/v1/groups", "The groups in force",
		func(ctx context.Context, in *noInput) (Groups, error) { return b.Groups(ctx, callFrom(ctx, in.Stale)) })
	get(r, "getPersons", "/v1/persons", "The persons in force",
		func(ctx context.Context, in *noInput) (Persons, error) {
			return b.Persons(ctx, callFrom(ctx, in.Stale))
		})
	get(r, "getBundle", "/v1/bundle", "The roots of both trust domains",
		func(ctx context.Context, in *noInput) (Bundle, error) { return b.Bundle(ctx, callFrom(ctx, in.Stale)) })
	get(r, "getCluster", "/v1/cluster", "The control plane as the answering node sees it",
		func(ctx context.Context, in *noInput) (Cluster, error) {
			return b.Cluster(ctx, callFrom(ctx, in.Stale))
		})
}

func (h *Handler) trustRoutes(r *registrar) {
	b := h.backend
	post(r, "installIssuers", "/v1/issuers", "Give a node the successors of its certificates; what counts is the roots' signature",
		func(ctx context.Context, in *postInput[InstallInput]) (Installed, error) {
			return b.InstallIssuers(ctx, callFrom(ctx, false), in.Body)
		})
	get(r, "listIssuers", "/v1/issuers", "The issuers of all nodes as the answering node knows them; for persons, services and nodes",
		func(ctx context.Context, in *noInput) (NodeIssuers, error) {
			return b.NodeIssuers(ctx, callFrom(ctx, in.Stale))
		})
	get(r, "getNodeRequest", "/v1/issuers/request", "The answering node's request to have its keys signed",
		func(ctx context.Context, in *noInput) (NodeRequest, error) {
			return b.NodeRequest(ctx, callFrom(ctx, in.Stale))
		})
	get(r, "getRoots", "/v1/roots", "The roots of both trust domains as the answering node knows them, with their documents",
		func(ctx context.Context, in *noInput) (Roots, error) { return b.Roots(ctx, callFrom(ctx, in.Stale)) })
	post(r, "setRoots", "/v1/roots", "Put a roots document in force; for admins, and signed by a root in force",
		func(ctx context.Context, in *postInput[RootsInput]) (RootSet, error) {
			return b.SetRoots(ctx, callFrom(ctx, false), in.Body)
		})
}

const pathManifest = "/v1/cluster/manifest"

// pathSeen takes longer bodies than others, too.
const pathSeen = "/v1/certificates/seen"

func (h *Handler) memberRoutes(r *registrar) {
	b := h.backend
	post(r, "adoptManifest", pathManifest, "Make the nodes of a newer manifest known; for admins, and signed by an identity root in force",
		func(ctx context.Context, in *postInput[ManifestInput]) (Cluster, error) {
			return b.AdoptManifest(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "joinNode", "/v1/nodes/{id}/join", "Send a known node the log, without giving it a vote; for admins",
		func(ctx context.Context, in *postIDInput[NodeInput]) (Node, error) {
			return b.JoinNode(ctx, callFrom(ctx, false), in.ID)
		})
	post(r, "promoteNode", "/v1/nodes/{id}/promote", "Give a node a vote once it has caught up; for admins",
		func(ctx context.Context, in *postIDInput[NodeInput]) (Node, error) {
			return b.PromoteNode(ctx, callFrom(ctx, false), in.ID)
		})
	post(r, "removeNode", "/v1/nodes/{id}/remove", "Take a node out of the cluster and its issuers out of use; for admins",
		func(ctx context.Context, in *postIDInput[RemoveNodeInput]) (Node, error) {
			return b.RemoveNode(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "handOver", "/v1/nodes/{id}/lead", "Have this node lead; for admins",
		func(ctx context.Context, in *postIDInput[NodeInput]) (Node, error) {
			return b.HandOver(ctx, callFrom(ctx, false), in.ID)
		})
}

const pathEmergency = "/v1/emergency"

func (h *Handler) emergencyRoutes(r *registrar) {
	b := h.backend
	get(r, "listEmergencies", pathEmergency, "Emergency issuers, and what was imported of them",
		func(ctx context.Context, in *noInput) (Emergencies, error) {
			return b.Emergencies(ctx, callFrom(ctx, in.Stale))
		})
	post(r, "registerEmergencyIssuer", pathEmergency+"/issuers", "Make an emergency issuer known; for admins, and signed by a grants root in force",
		func(ctx context.Context, in *postInput[EmergencyIssuerInput]) (Issuer, error) {
			return b.RegisterEmergencyIssuer(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "importEmergencyRecord", pathEmergency+"/records", "Import a record of an emergency issuer's journal; for admins, and signed by that issuer",
		func(ctx context.Context, in *postInput[EmergencyRecordInput]) (EmergencyJournal, error) {
			return b.ImportEmergencyRecord(ctx, callFrom(ctx, false), in.Body)
		})
	post(r, "revokeEmergencyGrant", pathEmergency+"/grants/{id}/revoke", "End an emergency grant that was not imported; for admins",
		func(ctx context.Context, in *postIDInput[ReasonInput]) (EmergencyRevocation, error) {
			return b.RevokeEmergencyGrant(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
}

func (h *Handler) auditRoutes(r *registrar) {
	b := h.backend
	get(r, "listAuditEntries", "/v1/audit/entries", "A run of audit entries, each the exact text that is hashed",
		func(ctx context.Context, in *entriesInput) (AuditEntries, error) {
			return b.AuditEntries(ctx, callFrom(ctx, in.Stale), in.From, in.Limit)
		})
	get(r, "getAuditCheckpoint", "/v1/audit/checkpoint", "The log's head, signed by the answering node",
		func(ctx context.Context, in *noInput) (AuditCheckpoint, error) {
			return b.AuditCheckpoint(ctx, callFrom(ctx, in.Stale))
		})
	get(r, "proveInclusion", "/v1/audit/proof/inclusion", "A proof that an entry is in the log",
		func(ctx context.Context, in *inclusionInput) (InclusionProof, error) {
			return b.InclusionProof(ctx, callFrom(ctx, in.Stale), in.Index, in.Size)
		})
	get(r, "proveConsistency", "/v1/audit/proof/consistency", "A proof that the log only grew",
		func(ctx context.Context, in *consistencyInput) (ConsistencyProof, error) {
			return b.ConsistencyProof(ctx, callFrom(ctx, in.Stale), in.Old, in.New)
		})
}
