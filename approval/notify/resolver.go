package notify

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// How often a resolver is asked.
const (
	DefaultEvery = time.Minute
	MinEvery     = 10 * time.Second
	MaxEvery     = time.Hour
)

// ResolverConfig names who says which members of a group are on call.
type ResolverConfig struct {
	Group string
	URL   string
	Keys  []SigningKey   // each signs what is asked
	Roots *x509.CertPool // that its certificate is verified by; nil: the system's
	Every time.Duration  // zero: DefaultEvery
}

// Resolver asks who is on call: an HTTP server that the operator runs in front of a schedule. Its answer is believed as far as its
// certificate is, and chooses among members: what of it holds, the state machine says.
type Resolver struct {
	group, url, host string
	every            time.Duration
	keys             []SigningKey
	poster           *poster
	now              func() time.Time
}

// NewResolver checks a configuration. Errors are *FieldError.
func NewResolver(c ResolverConfig, now func() time.Time) (*Resolver, error) {
	if c.Every == 0 {
		c.Every = DefaultEvery
	}
	u, err := checkURL(c.URL)
	switch {
	case grant.ValidService(c.Group) != nil:
		return nil, &FieldError{"group", fmt.Sprintf("%q: want the name of a group", c.Group)}
	case err != nil:
		return nil, &FieldError{"url", err.Error()}
	case len(c.Keys) == 0 || len(c.Keys) > maxKeys:
		return nil, &FieldError{"secret_files", fmt.Sprintf("%d keys: want 1 to %d: by them the resolver knows who asks", len(c.Keys), maxKeys)}
	case c.Every < MinEvery || c.Every > MaxEvery:
		return nil, &FieldError{"every", fmt.Sprintf("%s: want %s to %s", c.Every, MinEvery, MaxEvery)}
	}
	return &Resolver{
		group: c.Group, url: c.URL, host: u.Scheme + "://" + u.Host, every: c.Every, keys: c.Keys, poster: newPoster(c.Roots, now), now: now,
	}, nil
}

// Group is the group whose members it chooses among.
func (r *Resolver) Group() string { return r.group }

// Host is where it is, as far as may be said.
func (r *Resolver) Host() string { return r.host }

// Every is how often it is asked.
func (r *Resolver) Every() time.Duration { return r.every }

// question is what a resolver is asked.
type question struct {
	Group   string    `json:"group"`
	Members []string  `json:"members"`
	At      time.Time `json:"at"`
}

// errLongAnswer is returned for more than is read of an answer.
var errLongAnswer = errors.New("the answer is longer than 64 KiB")

// Ask posts {"group", "members", "at"}, signed as webhooks are, under an id that is new each time, and returns what was answered with a
// status 2xx, at most 64 KiB. Errors say nothing of the answer, nor of the URL beyond its host.
func (r *Resolver) Ask(ctx context.Context, id string, members []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	now := r.now()
	body, err := json.Marshal(question{r.group, members, now.UTC()})
	if err != nil {
		return nil, err
	}
	at := strconv.FormatInt(now.Unix(), 10)
	answer, err := r.poster.exchange(ctx, r.url, http.Header{
		"Content-Type":      {"application/json"},
		"Accept":            {"application/json"},
		"Webhook-Id":        {id},
		"Webhook-Timestamp": {at},
		"Webhook-Signature": {sign(r.keys, id, at, body)},
	}, body)
	if err != nil {
		return nil, err
	}
	if len(answer) > maxAnswer {
		return nil, errLongAnswer
	}
	return answer, nil
}
