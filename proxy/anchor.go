package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/proxy/records"
)

const (
	anchorEvery   = 5 * time.Second
	anchorBackoff = time.Minute
	anchorAtEnd   = 3 * time.Second // at most, for what was written last
	// maxOpenLines and maxOpenLine bound what is told of rules; nodes take no more.
	maxOpenLines = 32
	maxOpenLine  = 512
)

// errLogDiffers is returned when the cluster knows another log by this name.
var errLogDiffers = errors.New("the cluster has other words for this access log")

// anchorer has the control nodes write down how long the access log is and what its
// root is, so that who changes it later is found out, and what this service lets
// through besides grants. Nothing waits for it: while no node answers the log goes on,
// and the next head covers all of it.
//
// Of several services that write one log, one anchors it: the cluster takes a log's
// heads from the service that anchored it first.
type anchorer struct {
	self    string
	servers []*url.URL
	access  *accessLog
	tls     func() *tls.Config
	inForce func() openness
	log     *slog.Logger
	now     func() time.Time
	every   time.Duration
	trouble *trouble

	// What follows is run's, and last's once run has ended.
	at      int          // which node is asked
	told    records.Head // anchored
	said    openness     // anchored
	sent    int64
	failing bool
}

// run anchors until ctx ends.
func (a *anchorer) run(ctx context.Context) {
	wait := a.every
	for len(a.servers) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)): //nolint:gosec // jitter between proxies, no secret
		}
		err := a.anchor(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if a.failing {
				a.log.Info("the access log is anchored again")
			}
			a.failing, wait = false, a.every
			a.trouble.set("")
			continue
		case errors.Is(err, errLogDiffers):
			a.access.turn()
			a.log.Error("the access log is not anchored, and begins anew", slog.Any("error", err))
		case !a.failing:
			a.log.Warn("the access log cannot be anchored now, and will be later", slog.Any("error", err))
		}
		a.trouble.set(err.Error())
		a.failing, wait = true, min(2*wait, max(anchorBackoff, a.every))
	}
}

// last anchors what was written since, as the proxy stops. A control plane that did
// not answer before is not waited for.
func (a *anchorer) last(ctx context.Context) {
	if a.failing || len(a.servers) == 0 {
		return
	}
	if err := a.anchor(ctx); err != nil {
		a.log.Warn("the end of the access log is not anchored", slog.Any("error", err))
	}
}

// anchorInput is what a control node is told, see POST /v1/access/anchors.
type anchorInput struct {
	Log      string    `json:"log"`
	Size     int64     `json:"size,omitempty"`
	Root     string    `json:"root,omitempty"`
	SentMS   int64     `json:"sent_ms"`
	Settings *openness `json:"settings,omitempty"`
}

// anchor tells a node what is new, and the next one at the next turn if it fails.
func (a *anchorer) anchor(ctx context.Context) error {
	head, mine := a.access.anchorHead(a.self)
	in, now := anchorInput{Log: head.Log}, a.inForce()
	if mine && head != a.told {
		in.Size, in.Root = head.Size, head.Root
	}
	if !reflect.DeepEqual(now, a.said) {
		in.Settings = &now
	}
	if in.Size == 0 && in.Settings == nil {
		return nil
	}
	// Later each time, so that of two that overtook each other on their way the nodes
	// know which is the newer.
	a.sent = max(a.sent+1, a.now().UnixMilli())
	in.SentMS = a.sent
	server := a.servers[a.at%len(a.servers)]
	if err := a.send(ctx, server, in); err != nil {
		a.at++
		return fmt.Errorf("%s: %w", server.Host, explain(err))
	}
	if in.Size > 0 {
		a.told = head
	}
	a.said = now
	return nil
}

func (a *anchorer) send(ctx context.Context, server *url.URL, in anchorInput) error {
	status, answer, err := tell(ctx, a.tls(), server, "/v1/access/anchors", in)
	switch {
	case err != nil:
		return err
	case status == http.StatusConflict:
		var problem struct {
			Detail string `json:"detail"`
		}
		_ = json.Unmarshal(answer, &problem) // its words, if it has any
		return fmt.Errorf("%w: %s", errLogDiffers, strconv.Quote(problem.Detail))
	default:
		return taken(status)
	}
}

// openness is what a service lets through besides grants, as far as that is anchored.
type openness struct {
	SHA256  string   `json:"sha256"` // of the settings in force
	Mode    string   `json:"mode"`
	UntilMS int64    `json:"until_ms,omitempty"`
	Open    []string `json:"open"`
}

// openness says what settings that were read let through.
func (c *config) openness(s Settings) (openness, error) {
	text, err := yaml.Marshal(s)
	if err != nil {
		return openness{}, err
	}
	sum := sha256.Sum256(text)
	o := openness{SHA256: hex.EncodeToString(sum[:]), Mode: "enforce", Open: []string{}}
	for _, r := range c.rules.observing {
		if r.whole {
			o.Mode, o.UntilMS = "observe", r.until.UnixMilli()
		}
	}
	for _, r := range s.Observe {
		o.Open = append(o.Open, "observe until "+r.Until+": "+strings.Join(r.Permissions, ", "))
	}
	for _, r := range s.Allow {
		who := r.ID
		if r.Under != "" {
			who = "all under " + r.Under
		}
		o.Open = append(o.Open, "allow "+who+": "+strings.Join(r.Permissions, ", "))
	}
	if more := len(o.Open) - maxOpenLines; more > 0 {
		o.Open = append(o.Open[:maxOpenLines-1], fmt.Sprintf("and %d more", more+1))
	}
	for i, line := range o.Open {
		if line = strings.Trim(strconv.QuoteToASCII(line), `"`); len(line) > maxOpenLine {
			line = line[:maxOpenLine-3] + "..."
		}
		o.Open[i] = line
	}
	return o, nil
}

// anchorHead gives the log's head, and says whether that is this service's to anchor.
// One that nobody anchors yet is from here on.
func (l *accessLog) anchorHead(service string) (records.Head, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.anchoredBy == "" {
		l.anchoredBy = service
	}
	mine := l.anchoredBy == service
	if mine && l.turned && !l.broken.Load() {
		before := l.tree.Head(l.id)
		if err := l.beginTree(&before); err != nil {
			l.fail(err)
		} else {
			l.turned = false
		}
	}
	return l.tree.Head(l.id), mine
}

// turn has the log go on under a new name before it is anchored again.
func (l *accessLog) turn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turned = true
}

// leave has another service anchor the log, under a new name, if this one did.
func (l *accessLog) leave(service string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.anchoredBy == service {
		l.anchoredBy, l.turned = "", true
	}
}
