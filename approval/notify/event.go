package notify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval"
)

// Entry is one entry of the audit log.
type Entry struct {
	Index   uint64          `json:"index"`
	Kind    approval.Kind   `json:"kind"`
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor"`
	Object  string          `json:"object"`
	Command string          `json:"command"`
	Details json.RawMessage `json:"details"`

	Body json.RawMessage `json:"-"` // the whole of it, exactly the text that is hashed
}

// ParseEntry reads an entry's body.
func ParseEntry(body []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(body, &e); err != nil {
		return e, fmt.Errorf("notify: audit entry: %w", err)
	}
	e.Body = body
	return e, nil
}

// DeliveryID names the delivery of an entry to a target, the same on every node and
// at every try. It goes by the command, which is unique, and not by the entry's place
// alone: after a restore another entry may be in that place.
func DeliveryID(cluster string, e Entry, target string) string {
	h := sha256.New()
	for _, part := range []string{"hallpass notify v1", cluster, e.Command, target} {
		_, _ = h.Write([]byte(part)) // it never fails
		_, _ = h.Write([]byte{0})
	}
	return "msg_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// keys are what the entry is about: entries that share one leave in their order.
func (e Entry) keys() []string {
	if e.Kind != approval.KindTick {
		if e.Object == "" {
			return nil
		}
		return []string{e.Object}
	}
	var ended approval.Ticked
	if err := json.Unmarshal(e.Details, &ended); err != nil {
		return nil
	}
	keys := append(append(ended.Requests, ended.Grants...), ended.Changes...)
	for _, in := range ended.StandIns {
		keys = append(keys, in.Group)
	}
	return keys
}

// About are the ids of what the entry is about, with the grants that ended by it: of who
// was blocked, or of what was made of a grant.
func (e Entry) About() []string {
	var also struct {
		Grants []string `json:"grants"`
	}
	if json.Unmarshal(e.Details, &also) != nil {
		also.Grants = nil // an epoch's says how many there were
	}
	return append(e.keys(), also.Grants...)
}

// empty reports whether there is nothing in it that anybody would be told: a tick that
// only made room.
func (e Entry) empty() bool { return e.Kind == approval.KindTick && len(e.keys()) == 0 }

// Request is the access request that an entry is about, as the node knows it when it
// sends: a later try may say more.
type Request struct {
	ID          string   `json:"id"`
	State       string   `json:"state"`
	Requester   string   `json:"requester"`
	Subject     string   `json:"subject"`
	Service     string   `json:"service"`
	Permissions []string `json:"permissions"`
	DurationMS  int64    `json:"duration_ms"`
	Reason      string   `json:"reason"`
	Hash        string   `json:"hash"` // that a decision names
}

// Event is what a target is told.
type Event struct {
	Entry
	Cluster     string
	TrustDomain string
	Request     *Request // nil: the entry is about none
	Link        string   // to the page of what it is about; "" for none
	// Buttons are what may be decided in Slack, of Request as it says its hash is.
	Buttons []approval.Verdict
	Test    bool // nothing happened: somebody tries whether messages arrive
}

// Delivery is one event on its way to one target.
type Delivery struct {
	ID string
	// Again says that the receiver may have it already: it was tried, or an earlier
	// leader may have sent it.
	Again bool
	Event
}

// TestEvent is one that says nothing but that messages arrive.
func TestEvent(cluster, trustDomain, by string, now time.Time) Event {
	return Event{Cluster: cluster, TrustDomain: trustDomain, Test: true, Entry: Entry{
		Kind: "test", Time: now.UTC().Truncate(time.Millisecond), Actor: by, Details: json.RawMessage("{}"),
	}}
}

// cloudEvent is the body of webhooks: CloudEvents 1.0, structured JSON.
type cloudEvent struct {
	SpecVersion string    `json:"specversion"`
	ID          string    `json:"id"`
	Source      string    `json:"source"`
	Type        string    `json:"type"`
	Subject     string    `json:"subject,omitempty"`
	Time        time.Time `json:"time"`
	ContentType string    `json:"datacontenttype"`
	Data        eventData `json:"data"`
}

type eventData struct {
	Entry   json.RawMessage `json:"entry,omitempty"` // the audit entry, exactly as it is hashed
	Request *Request        `json:"request,omitempty"`
	Link    string          `json:"link,omitempty"`
}

// CloudEvent is the delivery as CloudEvents 1.0 has it in structured JSON. Its id is
// the delivery's, its type is "hallpass." and the audit entry's kind, its subject the
// id of what it is about.
func (d Delivery) CloudEvent() ([]byte, error) {
	return json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: d.ID, Source: "spiffe://" + d.TrustDomain + "/hallpass/" + url.PathEscape(d.Cluster),
		Type: "hallpass." + string(d.Kind), Subject: d.Object, Time: d.Time, ContentType: "application/json",
		Data: eventData{Entry: d.Body, Request: d.Request, Link: d.Link},
	})
}

// matches reports whether a pattern names a kind: the kind itself, "request.*" or "*".
func matches(pattern string, kind approval.Kind) bool {
	if pattern == "*" {
		return true
	}
	if family, ok := strings.CutSuffix(pattern, ".*"); ok {
		return strings.HasPrefix(string(kind), family+".")
	}
	return pattern == string(kind)
}
