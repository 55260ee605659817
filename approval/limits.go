package approval

import "time"

// Limits on what the state may hold; they bound the work of every command.
const (
	// MaxReason is the longest reason or comment, in bytes.
	MaxReason = 2000
	// MaxPermissions is how many permissions a scope may have. The length of
	// the SPIFFE ID limits most scopes before this does.
	MaxPermissions = 64
	// MaxRequestBundles is how many bundles a request may be made of.
	MaxRequestBundles = 8
	// MaxPendingRequests is how many pending requests one requester may have.
	MaxPendingRequests = 100
	// MaxPendingChanges is how many pending changes one author may have.
	MaxPendingChanges = 20
	// MaxLiveGrants is how many grants one subject may have at a time.
	MaxLiveGrants = 1000
	// MaxExtensions is how often one grant may be extended.
	MaxExtensions = 50
	// MaxOpenReviews is how many glasses one person may have broken that nobody has
	// reviewed yet.
	MaxOpenReviews = 20
	// MaxDecisions is how many persons may decide on one request.
	MaxDecisions = 100
	// MaxIssues is how many certificates one grant may have.
	MaxIssues = 100_000
	// MaxPersons, MaxGroups, MaxMembers, MaxIDs and MaxOwned bound the directory.
	MaxPersons = 20_000
	MaxGroups  = 1000
	MaxMembers = 2000
	MaxIDs     = 50
	MaxOwned   = 200
	// MaxSubstitutes is how many persons a group may have that stand in for members.
	MaxSubstitutes = 100
	// MaxNodes is how many nodes a cluster starts with.
	MaxNodes = 9
	// MaxKnownNodes is how many nodes a manifest may have: members, and such as
	// are to take their place.
	MaxKnownNodes = 16
	// MaxRootDocuments is how many roots documents a trust domain may have had.
	MaxRootDocuments = 64
	// MaxIssuersOfNode is how many issuers of one role a node may have that have
	// not ended.
	MaxIssuersOfNode = 16

	maxEarlyRevoked = 1000 // emergency grants revoked before they were imported

	maxDetail  = 4000 // bytes of Error.Detail
	maxLines   = 40   // of a reason or comment
	maxTrace   = 128
	maxIdemKey = 255
	maxAddress = 300

	maxSequence = 1<<31 - 1 // of manifests: RosterRevision has room for no more
)

// Times.
const (
	// RequestLife is how long a request without a start stays pending.
	RequestLife = 24 * time.Hour
	// ChangeLife is how long a change stays pending.
	ChangeLife = 7 * 24 * time.Hour
	// MaxAhead is how far ahead a request may start.
	MaxAhead = 30 * 24 * time.Hour
	// MaxGrantLife is the longest a grant may live, whatever policy says.
	MaxGrantLife = 30 * 24 * time.Hour
	// MaxStandIn is the longest that somebody stands in for a member of a group.
	MaxStandIn = 30 * 24 * time.Hour
	// MaxBackdate is how far before its minting a certificate may begin, for
	// verifiers whose clocks are behind.
	MaxBackdate = time.Minute
	// FeedSkew is how much longer than its certificates an entry stays on the
	// feed, for proxies whose clocks are behind.
	FeedSkew = time.Minute
	// MaxIdentityTTL is the longest life of an identity that an admin issues.
	MaxIdentityTTL = 30 * 24 * time.Hour
	// IdemLife is how long the result of a call with an Idempotency-Key is kept.
	IdemLife = 24 * time.Hour

	// lateStart is how long ago a start may be that was meant to be now.
	lateStart = time.Minute
	// maxNow is the end of the year 9999: no clock is that far ahead, and
	// effective time never goes back.
	maxNow = 253_402_300_799_999
)

// What one command does at most of work that has no other bound.
const (
	maxDue        = 256 // things that one tick ends
	maxIdemPrune  = 4   // kept results that one command drops
	maxIssuePrune = 4   // records of certificates that one command drops
)
