package api

import "time"

// NotifyTargets are the receivers of notifications: those that the answering node is
// configured with, and those that were before.
type NotifyTargets struct {
	Targets []NotifyTarget `json:"targets"`
	Missing []string       `json:"missing" doc:"names that the policy in force tells of requests, and that are not in the configuration of the answering node"`
}

// NotifyTarget is a receiver of notifications, and how far it is.
type NotifyTarget struct {
	Name       string       `json:"name"`
	Configured bool         `json:"configured" doc:"it is in the configuration of the answering node"`
	Kind       string       `json:"kind,omitempty"`
	Host       string       `json:"host,omitempty" doc:"where it is; the rest of its address is not told"`
	Events     []string     `json:"events" doc:"patterns of the audit entries that it is told of"`
	OnlyNamed  bool         `json:"only_named,omitempty" doc:"of requests alone whose rules in the policy name it"`
	Position   uint64       `json:"position" doc:"the first audit entry that was not looked at for it"`
	Behind     uint64       `json:"behind" doc:"audit entries from there on, most of them nothing that it is told"`
	Open       []NotifyOpen `json:"open" doc:"on their way, or tried again"`
	PausedAt   *time.Time   `json:"paused_at,omitempty" doc:"when it said that it wants no more"`
	Cause      string       `json:"cause,omitempty" doc:"what it said"`
	Sent       uint64       `json:"sent" doc:"delivered so far"`
	Dead       uint64       `json:"dead" doc:"dead letters that there are"`
	Dropped    uint64       `json:"dropped" doc:"dead letters that made room for newer ones"`
}

// NotifyOpen is a delivery that is on its way.
type NotifyOpen struct {
	Entry uint64    `json:"entry" doc:"of the audit log"`
	Since time.Time `json:"since"`
	Tries uint64    `json:"tries" doc:"that failed"`
	Cause string    `json:"cause,omitempty"`
}

// DeadLetters are deliveries that were given up.
type DeadLetters struct {
	Letters []DeadLetter `json:"letters"`
}

// DeadLetter is a delivery that was given up.
type DeadLetter struct {
	Target   string    `json:"target"`
	Entry    uint64    `json:"entry" doc:"of the audit log; by it, it is replayed"`
	Delivery string    `json:"delivery" doc:"the id that the receiver would have been sent"`
	Kind     string    `json:"kind" doc:"of the audit entry"`
	Object   string    `json:"object" doc:"what the entry is about"`
	Since    time.Time `json:"since"`
	At       time.Time `json:"at" doc:"when it was given up"`
	Tries    uint64    `json:"tries"`
	Cause    string    `json:"cause" doc:"of the last failure"`
}

// ReplayInput is the body of POST /v1/notify/targets/{id}/replay. With neither, a target
// that wanted no more is sent what came since.
type ReplayInput struct {
	Entries []uint64 `json:"entries,omitempty" maxItems:"256" doc:"audit entries of dead letters"`
	All     bool     `json:"all,omitempty" doc:"all dead letters of the target, as far as there is room"`
}

// NotifyTested is what came of a test message.
type NotifyTested struct {
	Target    string `json:"target"`
	Delivery  string `json:"delivery" doc:"the message's id"`
	Delivered bool   `json:"delivered"`
	Cause     string `json:"cause,omitempty" doc:"why it was not"`
	TookMS    int64  `json:"took_ms"`
}
