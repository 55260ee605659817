package approval

import "strings"

// content is what a decision is about: all that a request says at one revision.
// Two requests that differ in any of it have different hashes.
type content struct {
	Label          string        `cbor:"1,keyasint"`
	Requester      string        `cbor:"2,keyasint"`
	Subject        string        `cbor:"3,keyasint"`
	Service        string        `cbor:"4,keyasint"`
	Permissions    []string      `cbor:"5,keyasint"`
	Start          Millis        `cbor:"6,keyasint"`
	DurationMS     int64         `cbor:"7,keyasint"`
	Reason         string        `cbor:"8,keyasint"`
	CSRKey         string        `cbor:"9,keyasint"`
	PolicyRevision uint64        `cbor:"10,keyasint"`
	Requirements   []Requirement `cbor:"11,keyasint"`
	Parent         string        `cbor:"12,keyasint"`
	BreakGlass     bool          `cbor:"13,keyasint,omitempty"`
	Extends        *Extends      `cbor:"14,keyasint,omitempty"`
	Of             string        `cbor:"15,keyasint,omitempty"` // the grant that it is made of
	Delegation     *Delegation   `cbor:"16,keyasint,omitempty"`
	Escalation     *Escalation   `cbor:"17,keyasint,omitempty"`
}

// contentHash is the canonical hash of a request as revision v says it: hex
// SHA-256 of the deterministic CBOR of its content.
func contentHash(r Request, v Revision) (string, error) {
	data, err := encoder.Marshal(content{
		Label: "hallpass/request/v1", Requester: r.Requester, Subject: r.Subject,
		Service: r.Service, Permissions: v.Permissions, Start: r.Start, DurationMS: v.DurationMS,
		Reason: r.Reason, CSRKey: r.CSRKey, PolicyRevision: r.PolicyRevision,
		Requirements: v.Requirements, Parent: v.Parent, BreakGlass: r.Review != nil,
		Extends: r.Extends, Of: r.Parent, Delegation: r.Delegation, Escalation: v.Escalation,
	})
	return sha256Hex(data), err
}

// changeContent is what a decision on a change is about.
type changeContent struct {
	Label        string `cbor:"1,keyasint"`
	ID           string `cbor:"2,keyasint"`
	Author       string `cbor:"3,keyasint"`
	Edit         Edit   `cbor:"4,keyasint"`
	BaseRevision uint64 `cbor:"5,keyasint"`
	BlockIndex   uint64 `cbor:"6,keyasint"`
}

func changeHash(c Change) (string, error) {
	data, err := encoder.Marshal(changeContent{
		Label: "hallpass/change/v1", ID: c.ID, Author: c.Author,
		Edit: c.Edit, BaseRevision: c.BaseRevision, BlockIndex: c.BlockIndex,
	})
	return sha256Hex(data), err
}

// shortHash is how messages name a hash.
func shortHash(hash string) string { return strings.ToLower(hash[:min(12, len(hash))]) }
