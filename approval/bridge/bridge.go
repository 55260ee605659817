package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/hallpass/hallpass/approval/api"
)

const (
	// Path is where Slack calls.
	Path = "/slack"
	// Hooks is where Slack takes answers.
	Hooks = "https://hooks.slack.com"

	maxBody = 256 << 10
	// maxConns is how many connections there are at a time: who opens them and sends
	// nothing is cut off by the times below.
	maxConns = 256
	// atOnce is how many decisions are under way at a time.
	atOnce = 16
	// decideFor bounds one decision with its answer. Slack takes answers for half an hour.
	decideFor = time.Minute
	answerFor = 10 * time.Second
)

// ErrConfig is returned when a Config asks for what cannot be.
var ErrConfig = errors.New("slack bridge: bad configuration")

// Decider is the cluster's API, called with the bridge's own identity.
type Decider interface {
	// DecideRequest MUST decide at most once under one Idempotency-Key.
	DecideRequest(ctx context.Context, id string, in api.DecisionInput, opts ...api.CallOption) (api.Request, error)
}

// Config says whose buttons are brought in, and to whom.
type Config struct {
	Secret []byte            // Slack's signing secret
	Team   string            // the workspace's id
	API    Decider           // the cluster
	Hooks  string            // "": that of Slack
	Client http.RoundTripper // of answers; nil: http.DefaultTransport
	Logger *slog.Logger      // nil discards
	Now    func() time.Time  // nil: time.Now
}

// Bridge takes Slack's calls. It is an http.Handler.
type Bridge struct {
	secret []byte
	team   string
	api    Decider
	hooks  *url.URL
	client *http.Client
	log    *slog.Logger
	now    func() time.Time

	memory memory
	places chan struct{} // one for each decision under way
}

// New checks a Config.
func New(c Config) (*Bridge, error) {
	b := &Bridge{secret: c.Secret, team: c.Team, api: c.API, log: c.Logger, now: c.Now, places: make(chan struct{}, atOnce)}
	b.memory.seen = make(map[[sha256.Size]byte]time.Time)
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.now == nil {
		b.now = time.Now
	}
	if c.Hooks == "" {
		c.Hooks = Hooks
	}
	var err error
	b.hooks, err = url.Parse(c.Hooks)
	switch {
	case len(c.Secret) < 16:
		// An empty key is one that everybody has.
		return nil, fmt.Errorf("%w: the signing secret has %d bytes: want Slack's, which has 32", ErrConfig, len(c.Secret))
	case c.Team == "" || strings.Trim(c.Team, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "":
		return nil, fmt.Errorf("%w: team %q: want a workspace's id, such as T024BE7LH", ErrConfig, c.Team)
	case c.API == nil:
		return nil, fmt.Errorf("%w: no cluster", ErrConfig)
	case err != nil || b.hooks.Scheme != "https" || b.hooks.Host == "" || b.hooks.User != nil || strings.Trim(b.hooks.Path, "/") != "" || b.hooks.RawQuery != "":
		return nil, fmt.Errorf("%w: hooks %q: want https://HOST; default %s", ErrConfig, c.Hooks, Hooks)
	}
	b.client = &http.Client{
		Transport: c.Client, Timeout: answerFor,
		// A redirect would send what was decided to a place nobody named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return b, nil
}

// Serve takes calls on l until ctx ends, and then waits for the decisions under way.
func (b *Bridge) Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: b, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(netutil.LimitListener(l, maxConns)) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if s.Shutdown(ending) != nil {
			_ = s.Close() // whoever still sends has had its time
		}
		err = <-served
	}
	b.drain()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain waits for the decisions under way, and leaves no place for another.
func (b *Bridge) drain() {
	for range atOnce {
		b.places <- struct{}{}
	}
}

// ServeHTTP takes one call of Slack's. Slack waits three seconds, so it is told that the
// call was taken before the cluster is asked.
func (b *Bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status := b.take(w, r)
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	w.WriteHeader(status)
}

func (b *Bridge) take(w http.ResponseWriter, r *http.Request) int {
	if r.URL.Path != Path {
		return http.StatusNotFound
	}
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return http.StatusUnsupportedMediaType
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return http.StatusRequestEntityTooLarge
		}
		return http.StatusBadRequest
	}
	now := b.now()
	signature, err := verify(b.secret, r.Header, body, now)
	if err != nil {
		b.refuse(r, err)
		return http.StatusUnauthorized
	}
	p, err := readPress(body, b.team)
	switch {
	case errors.Is(err, errOther):
		return http.StatusOK // another part of the app: nothing to do, and nothing to complain of
	case err != nil:
		b.refuse(r, err)
		return http.StatusForbidden
	}
	select {
	case b.places <- struct{}{}:
	default:
		return http.StatusServiceUnavailable // Slack says so to the person, who may try again
	}
	first, full := b.memory.first(signature, now)
	if !first {
		<-b.places
		if full {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK // it was taken before
	}
	go b.decide(context.WithoutCancel(r.Context()), p, signature)
	return http.StatusOK
}

func (b *Bridge) refuse(r *http.Request, err error) {
	level := slog.LevelWarn
	if errors.Is(err, errUnsigned) {
		level = slog.LevelDebug // anybody can send these, and would fill the log
	}
	b.log.LogAttrs(r.Context(), level, "a call was refused", slog.String("from", r.RemoteAddr), slog.String("error", err.Error()))
}

// decide asks the cluster, and tells Slack what came of it. The key follows from the
// call: one that comes to two bridges, or again after a restart, is one decision.
func (b *Bridge) decide(ctx context.Context, p press, signature [sha256.Size]byte) {
	defer func() { <-b.places }()
	defer func() {
		// One call must not end the others.
		if v := recover(); v != nil {
			b.log.LogAttrs(ctx, slog.LevelError, "a call panicked", slog.String("request", p.request), slog.Any("panic", v))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, decideFor)
	defer cancel()
	r, err := b.api.DecideRequest(ctx, p.request, api.DecisionInput{Decision: p.decision, Hash: p.hash, Slack: p.account},
		api.WithKey("slack-"+hex.EncodeToString(signature[:])))
	attrs := []slog.Attr{slog.String("request", p.request), slog.String("decision", p.decision), slog.String("account", p.account)}
	out := refused(p, err)
	if err == nil {
		b.log.LogAttrs(ctx, slog.LevelInfo, "decided", append(attrs, slog.String("state", r.State))...)
		out = decided(p, r)
	} else {
		b.log.LogAttrs(ctx, slog.LevelWarn, "not decided", append(attrs, slog.String("error", err.Error()))...)
	}
	if err := b.answer(ctx, p.answer, out); err != nil {
		b.log.LogAttrs(ctx, slog.LevelWarn, "Slack was not told what came of it", append(attrs, slog.String("error", err.Error()))...)
	}
}
