package api

import (
	"encoding/json"
	"time"
)

// Feed is the revocation feed: revoked grants and denied issuers that still
// have an unexpired certificate.
type Feed struct {
	Epoch      uint64      `json:"epoch"`
	EpochBegan *time.Time  `json:"epoch_began,omitempty" doc:"grants whose id is older are denied, listed or not; absent: never restored"`
	Revision   uint64      `json:"revision"`
	Grants     []FeedEntry `json:"grants"`
	Issuers    []FeedEntry `json:"issuers"`
	VerifiedAt time.Time   `json:"verified_at" doc:"when a quorum last confirmed that nothing newer exists, by the leader's clock"`
	Roots      uint64      `json:"roots,omitempty" doc:"how many roots documents there have been, of both trust domains: see /v1/roots"`
}

// FeedEntry is one revoked id.
type FeedEntry struct {
	ID    string    `json:"id"`
	Until time.Time `json:"until" doc:"when its last certificate has expired"`
}

// Heartbeat is the data of the feed's "heartbeat" events.
type Heartbeat struct {
	Epoch      uint64    `json:"epoch"`
	Revision   uint64    `json:"revision"`
	VerifiedAt time.Time `json:"verified_at"`
	Roots      uint64    `json:"roots,omitempty"`
}

// Event is one accepted change, as told by GET /v1/events.
type Event struct {
	ID      uint64          `json:"id" doc:"size of the audit log with its entry: entry index + 1"`
	Kind    string          `json:"kind"`
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor"`
	Object  string          `json:"object" doc:"id of the request, grant, change, … that changed"`
	Details json.RawMessage `json:"details,omitempty"`
}

// SeenInput is what a service's proxy was shown.
type SeenInput struct {
	Issuers      [][]byte `json:"issuers" maxItems:"64" doc:"the certificates that signed the others; DER in base64"`
	Certificates [][]byte `json:"certificates" maxItems:"64" doc:"of grants; DER in base64"`
}

// Seen is what a node makes of it.
type Seen struct {
	Committed int `json:"committed" doc:"are in the log, or may have been forgotten"`
	Pending   int `json:"pending" doc:"are not, and the alarm is raised once a quorum has said that they never were"`
	Refused   int `json:"refused" doc:"are of no grant issuer of this cluster"`
	Dropped   int `json:"dropped" doc:"were too many to be looked into"`
}

// AnchorInput is the head of a proxy's access log, and what the proxy lets through.
type AnchorInput struct {
	Log      string              `json:"log" minLength:"32" maxLength:"32" doc:"the log's name, of its first line"`
	Size     int64               `json:"size,omitempty" minimum:"0" doc:"lines; absent with settings alone"`
	Root     string              `json:"root,omitempty" maxLength:"64" doc:"RFC 6962, hex"`
	SentMS   int64               `json:"sent_ms" minimum:"1" doc:"unix ms by the proxy's clock, later each time"`
	Settings *ProxySettingsInput `json:"settings,omitempty" doc:"those in force now, once after each change"`
}

// ProxySettingsInput says what a proxy lets through besides grants.
type ProxySettingsInput struct {
	SHA256  string   `json:"sha256" minLength:"64" maxLength:"64" doc:"of the configuration in force"`
	Mode    string   `json:"mode" enum:"enforce,observe"`
	UntilMS int64    `json:"until_ms,omitempty" minimum:"0" doc:"unix ms, of mode observe"`
	Open    []string `json:"open" maxItems:"32" doc:"what is observed and standing rules, one a line"`
}

// Anchored says where a head is anchored.
type Anchored struct {
	Log   string `json:"log"`
	Size  int64  `json:"size"`
	Root  string `json:"root"`
	Entry uint64 `json:"entry" doc:"of the audit log"`
}

// AuditEntries is a run of audit entries. Each entry is the exact text that is
// hashed into the log.
type AuditEntries struct {
	Entries []json.RawMessage `json:"entries"`
	Size    uint64            `json:"size" doc:"entries in the log"`
	Next    uint64            `json:"next,omitempty" doc:"where the next run starts; absent at the end"`
}

// AuditCheckpoint is a signed statement of the log's size and root.
type AuditCheckpoint struct {
	Checkpoint string `json:"checkpoint" doc:"C2SP tlog-checkpoint, signed by the answering node"`
	Origin     string `json:"origin"`
	Size       uint64 `json:"size"`
	Root       string `json:"root" doc:"base64"`
}

// InclusionProof proves that an entry is in the log of a size.
type InclusionProof struct {
	Index    uint64   `json:"index"`
	Size     uint64   `json:"size"`
	LeafHash string   `json:"leaf_hash" doc:"base64"`
	Hashes   []string `json:"hashes" doc:"base64"`
}

// ConsistencyProof proves that a log only grew.
type ConsistencyProof struct {
	Old    uint64   `json:"old"`
	New    uint64   `json:"new"`
	Hashes []string `json:"hashes" doc:"base64"`
}
