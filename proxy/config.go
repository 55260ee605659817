package proxy

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	otellog "go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/grant"
)

// Config is all that a Proxy is made of.
type Config struct {
	Settings Settings
	// Logger gets what operators should know; nil discards it.
	Logger *slog.Logger
	// Now is the wall clock; nil is time.Now.
	Now func() time.Time
	// TracerProvider and MeterProvider may be nil: then nothing is measured.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	// LoggerProvider is given every access record, beside the file; nil: none.
	LoggerProvider otellog.LoggerProvider
	// Metrics is served as /metrics on the admin listener; nil: 404.
	Metrics http.Handler
}

// config is a Config that has been checked.
type config struct {
	service    string
	among      bool // other services are in the same process
	self       spiffeid.ID
	identityTD spiffeid.TrustDomain
	grantTD    spiffeid.TrustDomain
	tcp        bool
	pg         *pgConfig // nil unless the protocol is postgres
	emergency  emergencyRule
	hosts      map[string]struct{}
	upstream   target
	requestURL string         // without a query; "" for none
	balancers  []netip.Prefix // whose PROXY protocol headers are read
	announce   bool           // to the upstream, in one
	path       grant.PathOptions
	rules      rules
	sandbox    sandboxRule
	open       openness // what is anchored of all this

	files     files
	servers   []*url.URL
	stateFile string
	staleness time.Duration
	skew      time.Duration

	logPath   string
	logDeny   bool
	rotation  logRotation
	records   otellog.LoggerProvider
	listen    string
	admin     string
	before    time.Duration
	shutdown  time.Duration
	limits    limits
	log       *slog.Logger
	now       func() time.Time
	tracers   trace.TracerProvider
	meters    metric.MeterProvider
	metricsUI http.Handler
}

// files are those that are watched for changes. There may be no roots file.
type files struct{ certificate, key, identity, grants, roots string }

// limits are LimitSettings with the defaults filled in.
type limits struct {
	conns, perGrant, handshakes, streams    int
	requests                                int // of one grant, over HTTP/2
	headerBytes, targetBytes                int
	bodyBytes                               int64 // 0: as many as come
	handshakeTime, headerTime, idle, dialTO time.Duration
}

// target is where the upstream listens.
type target struct {
	network, address string // for net.Dialer
	h2c              bool
}

// Check says whether New would take these settings, without opening any file.
func (s Settings) Check() error {
	_, err := newConfigs(Config{Settings: s})
	return err
}

func newConfig(c Config) (*config, error) {
	s := &c.Settings
	if len(s.Services) > 0 {
		return nil, s.mistake("services", "is for a Fleet")
	}
	cfg := &config{
		service: s.Service, path: grant.PathOptions{AllowSemicolon: s.AllowSemicolon},
		stateFile: s.Revocation.StateFile, logPath: s.AccessLog.Path, admin: s.Admin, listen: s.Listen,
		log: c.Logger, now: c.Now, tracers: c.TracerProvider, meters: c.MeterProvider, records: c.LoggerProvider, metricsUI: c.Metrics,
	}
	if cfg.log == nil {
		cfg.log = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	err := errors.Join(
		cfg.readNames(s),
		cfg.readFiles(s),
		cfg.readUpstream(s),
		cfg.readRequestURL(s),
		cfg.readBalancers(s),
		cfg.readPostgres(s),
		cfg.readRevocation(s),
		cfg.readEmergency(s),
		cfg.readRules(s),
		cfg.readSandbox(s),
		cfg.readAccessLog(s),
		cfg.readLimits(s),
		cfg.readAdmin(s),
	)
	if err != nil {
		return nil, err
	}
	cfg.open, err = cfg.openness(*s)
	return cfg, err
}

func (c *config) readNames(s *Settings) error {
	var errs []error
	if err := grant.ValidService(s.Service); err != nil {
		errs = append(errs, s.mistake("service", "%q is no service name; use a lower-case DNS label such as payments", s.Service))
	}
	var err error
	if c.identityTD, err = plainDomain(s.TrustDomain); err != nil {
		errs = append(errs, s.mistake("trust_domain", "%q is no trust domain such as acme.test", s.TrustDomain))
		return errors.Join(errs...)
	}
	name := s.GrantTrustDomain
	if name == "" {
		name = "grants." + s.TrustDomain
	}
	if c.grantTD, err = plainDomain(name); err != nil {
		errs = append(errs, s.mistake("grant_trust_domain", "%q is no trust domain such as grants.acme.test", name))
	} else if c.grantTD == c.identityTD {
		// In one domain a service that admits any member would admit a grant
		// certificate as if it were its subject.
		errs = append(errs, s.mistake("grant_trust_domain", "must differ from trust_domain"))
	}
	if c.self, err = spiffeid.FromSegments(c.identityTD, "service", s.Service); err != nil && len(errs) == 0 {
		errs = append(errs, s.mistake("service", "%q makes no SPIFFE ID", s.Service))
	}
	return errors.Join(errs...)
}

// plainDomain takes a bare trust domain name; spiffeid would also take an ID.
func plainDomain(name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil || td.Name() != name {
		return spiffeid.TrustDomain{}, ErrSettings
	}
	return td, nil
}

func (c *config) readFiles(s *Settings) error {
	var errs []error
	c.files = files{certificate: s.Certificate, key: s.Key, identity: s.IdentityBundle, grants: s.GrantsBundle, roots: s.RootsFile}
	if c.files.roots == "" && s.Revocation.StateFile != "" {
		c.files.roots = filepath.Join(filepath.Dir(s.Revocation.StateFile), "roots.jsonl")
	}
	for _, f := range []struct{ key, path string }{
		{"certificate", s.Certificate},
		{"key", s.Key},
		{"identity_bundle", s.IdentityBundle},
		{"grants_bundle", s.GrantsBundle},
	} {
		if f.path == "" {
			errs = append(errs, s.mistake(f.key, "is missing"))
		}
	}
	return errors.Join(errs...)
}

func (c *config) readUpstream(s *Settings) error {
	var errs []error
	switch s.Protocol {
	case "", "http":
	case "tcp":
		c.tcp = true
	case "postgres":
		c.pg = &pgConfig{}
	default:
		errs = append(errs, s.mistake("protocol", "%q is neither http nor tcp nor postgres", s.Protocol))
	}
	c.hosts = make(map[string]struct{}, len(s.Hosts))
	for i, h := range s.Hosts {
		if !validHostName(h) {
			errs = append(errs, s.mistake("hosts["+strconv.Itoa(i)+"]", "%q is no lower-case host name or address (write no port)", h))
		}
		c.hosts[h] = struct{}{}
	}
	if !c.tcp && c.pg == nil && len(s.Hosts) == 0 {
		errs = append(errs, s.mistake("hosts", "is empty, so nobody would be admitted; list the names that clients use"))
	}
	t, err := parseTarget(s.Upstream, c.tcp)
	if c.pg != nil {
		t, err = parsePostgresTarget(s.Upstream)
	}
	if err != nil {
		errs = append(errs, s.mistake("upstream", "%s", err.Error()))
	}
	c.upstream = t
	return errors.Join(errs...)
}

// readRequestURL reads where people ask for access. A browser is sent there with what it was
// refused: over plain HTTP whoever is on the way could read it and show a page of their own.
func (c *config) readRequestURL(s *Settings) error {
	if s.RequestURL == "" {
		return nil
	}
	u, err := url.Parse(s.RequestURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return s.mistake("request_url", "%q is no https://HOST/PATH without user, query and fragment", s.RequestURL)
	}
	c.requestURL = u.String()
	return nil
}

func validHostName(h string) bool {
	if net.ParseIP(h) != nil {
		return true
	}
	if h == "" || len(h) > 253 || h[0] == '.' || h[len(h)-1] == '.' {
		return false
	}
	for i := range len(h) {
		b := h[i]
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && b != '.' && b != '_' {
			return false
		}
	}
	return true
}

var (
	errHTTPUpstream = errors.New("want http://HOST:PORT, h2c://HOST:PORT or unix:///PATH")
	errTCPUpstream  = errors.New("want tcp://HOST:PORT or unix:///PATH, as protocol is tcp")
)

func parseTarget(text string, tcp bool) (target, error) {
	want, schemes := errHTTPUpstream, []string{"http", "h2c"}
	if tcp {
		want, schemes = errTCPUpstream, []string{"tcp"}
	}
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return target{}, want
	}
	if u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path) {
		return target{network: "unix", address: u.Path}, nil
	}
	// A path here would be put before, or instead of, the path that was matched.
	if !slices.Contains(schemes, u.Scheme) || u.Path != "" || u.Hostname() == "" || u.Port() == "" {
		return target{}, want
	}
	return target{network: "tcp", address: u.Host, h2c: u.Scheme == "h2c"}, nil
}

func (c *config) readRevocation(s *Settings) error {
	var errs []error
	for i, text := range s.Revocation.Servers {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			errs = append(errs, s.mistake("revocation.servers["+strconv.Itoa(i)+"]", "%q is no https://HOST:PORT", text))
			continue
		}
		c.servers = append(c.servers, &url.URL{Scheme: "https", Host: u.Host, Path: "/v1/revocations"})
	}
	c.staleness = s.Revocation.MaxStaleness
	c.skew = orDefault(s.Revocation.Skew, time.Minute)
	switch {
	case len(s.Revocation.Servers) > 0 && c.stateFile == "":
		// Without it a proxy restarted while cut off would admit what it once knew to be revoked.
		errs = append(errs, s.mistake("revocation.state_file", "is missing; revocations must outlive a restart"))
	case len(s.Revocation.Servers) == 0 && c.staleness > 0:
		errs = append(errs, s.mistake("revocation.max_staleness", "needs revocation.servers"))
	case c.staleness > 0 && c.staleness < time.Second:
		errs = append(errs, s.mistake("revocation.max_staleness", "is under 1s, and nodes report every 5s"))
	}
	return errors.Join(errs...)
}

func (c *config) readAccessLog(s *Settings) error {
	var errs []error
	if c.logPath == "" {
		errs = append(errs, s.mistake("access_log.path", "is missing; name a file, or - for standard output"))
	}
	switch s.AccessLog.OnFailure {
	case "", "deny":
		c.logDeny = true
	case "allow":
	default:
		errs = append(errs, s.mistake("access_log.on_failure", "%q is neither deny nor allow", s.AccessLog.OnFailure))
	}
	errs = append(errs, c.readRotation(s))
	return errors.Join(errs...)
}

func (c *config) readAdmin(s *Settings) error {
	if s.Admin == "" || strings.HasPrefix(s.Admin, "unix:") {
		return nil
	}
	host, _, err := net.SplitHostPort(s.Admin)
	if err != nil {
		return s.mistake("admin", "%q is no HOST:PORT or unix:PATH", s.Admin)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return s.mistake("admin", "%q is not loopback; health and metrics have no authentication", s.Admin)
	}
	return nil
}

func (c *config) readLimits(s *Settings) error {
	l := s.Limits
	var errs []error
	for _, n := range []struct {
		key string
		set int
		def int
		low int
		to  *int
	}{
		{"max_connections", l.MaxConnections, 10000, 1, &c.limits.conns},
		{"max_connections_per_grant", l.MaxConnectionsPerGrant, 1000, 1, &c.limits.perGrant},
		{"max_requests_per_grant", l.MaxRequestsPerGrant, 2000, 1, &c.limits.requests},
		{"max_handshakes", l.MaxHandshakes, 2000, 1, &c.limits.handshakes},
		{"max_streams", l.MaxStreams, 250, 1, &c.limits.streams},
		{"max_header_bytes", l.MaxHeaderBytes, 64 << 10, 4 << 10, &c.limits.headerBytes},
		{"max_target_bytes", l.MaxTargetBytes, 8 << 10, 256, &c.limits.targetBytes},
	} {
		switch {
		case n.set == 0:
			*n.to = n.def
		case n.set < n.low || n.set > 1<<24:
			errs = append(errs, s.mistake("limits."+n.key, "%d is not within %d and %d", n.set, n.low, 1<<24))
		default:
			*n.to = n.set
		}
	}
	if c.limits.bodyBytes = l.MaxBodyBytes; l.MaxBodyBytes < 0 {
		errs = append(errs, s.mistake("limits.max_body_bytes", "%d is negative", l.MaxBodyBytes))
	}
	for _, d := range []struct {
		key string
		set time.Duration
	}{
		{"revocation.max_staleness", s.Revocation.MaxStaleness},
		{"revocation.skew", s.Revocation.Skew},
		{"drain.before_expiry", s.Drain.BeforeExpiry},
		{"drain.shutdown", s.Drain.Shutdown},
		{"limits.handshake_timeout", l.HandshakeTimeout},
		{"limits.header_timeout", l.HeaderTimeout},
		{"limits.idle_timeout", l.IdleTimeout},
		{"limits.dial_timeout", l.DialTimeout},
	} {
		if d.set < 0 {
			errs = append(errs, s.mistake(d.key, "%s is negative", d.set))
		}
	}
	c.limits.handshakeTime = orDefault(l.HandshakeTimeout, 5*time.Second)
	c.limits.headerTime = orDefault(l.HeaderTimeout, 10*time.Second)
	c.limits.idle = orDefault(l.IdleTimeout, 2*time.Minute)
	c.limits.dialTO = orDefault(l.DialTimeout, 5*time.Second)
	c.before = orDefault(s.Drain.BeforeExpiry, 5*time.Second)
	c.shutdown = orDefault(s.Drain.Shutdown, 30*time.Second)
	return errors.Join(errs...)
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}
