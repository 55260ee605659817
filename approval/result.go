package approval

// Object is what a command made or changed: a Request, Grant, Change, Issue,
// Block, Issuer, Installed, Roots, Node, Cluster, Ticked, EmergencyJournal,
// EmergencyRevocation, Anchored, Duty, StandIn or Target, by value.
type Object interface{ objectKind() string }

func (Request) objectKind() string { return "request" }
func (Grant) objectKind() string   { return "grant" }
func (Change) objectKind() string  { return "change" }
func (Issue) objectKind() string   { return "issue" }
func (Block) objectKind() string   { return "block" }
func (Issuer) objectKind() string  { return "issuer" }
func (Cluster) objectKind() string { return "cluster" }
func (Ticked) objectKind() string  { return "ticked" }

func (Installed) objectKind() string { return "installed" }
func (Roots) objectKind() string     { return "roots" }
func (Node) objectKind() string      { return "node" }

func (EmergencyJournal) objectKind() string    { return "emergency journal" }
func (EmergencyRevocation) objectKind() string { return "emergency revocation" }

func (Anchored) objectKind() string { return "anchored" }

// Result is what a command came to: Err, or Object. Kinds give these objects:
// bootstrap a Cluster; request.* a Request; grant.issue and identity.issue an
// Issue; grant.revoke and grant.return a Grant; subject.block a Block;
// issuer.deny an Issuer; issuer.install an Installed; roots.set a Roots;
// manifest.adopt and version.raise a Cluster; node.* and leader.transfer a Node;
// change.* a Change; tick a Ticked; emergency.register an Issuer, emergency.import
// an EmergencyJournal and emergency.revoke an EmergencyRevocation; access.anchor an
// Anchored; outbox.* a Target; group.duty a Duty; group.stand_in and group.stand_in.end
// a StandIn.
type Result struct {
	Index    uint64 // Raft index of the command; of the first one for a replay
	Err      *Error
	Object   Object
	Changed  bool // the state is another one: there is an audit leaf
	Replayed bool // an idempotent replay: what the first call came to
}

// Failure returns Err as an error, nil when the command was accepted.
func (r Result) Failure() error {
	if r.Err == nil {
		return nil
	}
	return r.Err
}
