package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Settings is a proxy's configuration file. LoadSettings reads it; New checks it.
// Paths are taken from the folder the file lies in. The doc tags are its reference.
type Settings struct {
	Service  string   `yaml:"service" doc:"short name of the protected service"`
	Listen   string   `yaml:"listen" doc:"TCP address that clients dial"`
	Protocol string   `yaml:"protocol" doc:"http (HTTP/1.1, HTTP/2, gRPC, WebSocket; default), tcp or postgres"`
	Hosts    []string `yaml:"hosts" doc:"names that Host and :authority may carry, with any port"`
	Upstream string   `yaml:"upstream" doc:"http://HOST:PORT, h2c://HOST:PORT, tcp://HOST:PORT, postgres://HOST:PORT or unix:///PATH"`

	ListenProxyProtocol   ProxyProtocolSettings `yaml:"listen_proxy_protocol"`
	UpstreamProxyProtocol string                `yaml:"upstream_proxy_protocol" doc:"v2: tell the upstream the client's address so; not for http"`

	TrustDomain      string `yaml:"trust_domain" doc:"the identities' trust domain"`
	GrantTrustDomain string `yaml:"grant_trust_domain" doc:"the grants' trust domain (default: grants. + trust_domain)"`
	Certificate      string `yaml:"certificate" doc:"the service's own certificate chain"`
	Key              string `yaml:"key" doc:"its private key"`
	IdentityBundle   string `yaml:"identity_bundle" doc:"the identities' roots"`
	GrantsBundle     string `yaml:"grants_bundle" doc:"the grants' roots"`
	RootsFile        string `yaml:"roots_file" doc:"where signed changes of the roots are kept (default: roots.jsonl beside revocation.state_file)"`

	Emergency string `yaml:"emergency" doc:"deny (default), allow or allow_stale: certificates of emergency issuers"`

	AllowSemicolon bool `yaml:"allow_semicolon" doc:"let request paths hold ;"`

	RequestURL string `yaml:"request_url" doc:"https page on which people ask for access; refusals lead there, with service and allow in the query"`

	Revocation RevocationSettings `yaml:"revocation"`
	AccessLog  AccessLogSettings  `yaml:"access_log"`
	Mode       string             `yaml:"mode" doc:"enforce (default), or observe until a date: let through and record what would be refused for its permission"`
	Until      string             `yaml:"until" doc:"the last day of mode: observe, or a time; within 90 days"`
	Observe    []ObserveSettings  `yaml:"observe" doc:"the same for some permissions, each with permissions and until"`
	Allow      []AllowSettings    `yaml:"allow" doc:"what identities may do without a grant, each with id or under, and permissions"`
	Admin      string             `yaml:"admin" doc:"health and metrics: loopback HOST:PORT or unix:PATH; empty: none"`
	Sandbox    string             `yaml:"sandbox" doc:"required, best_effort or off (default): confine the process to what the configuration names"`
	Drain      DrainSettings      `yaml:"drain"`
	Limits     LimitSettings      `yaml:"limits"`
	Postgres   PostgresSettings   `yaml:"postgres"`

	// Services are those of a proxy that has several; the keys above that a service
	// has too then are what it has unless it says otherwise.
	Services []ServiceSettings `yaml:"services" doc:"several services behind one proxy, each with service, listen, protocol, hosts, upstream, certificate, key"`

	file  string
	lines map[string]int
	in    string // of the key of a service's: services[1]
}

// ProxyProtocolSettings says whose word is taken for a client's address.
type ProxyProtocolSettings struct {
	// Trusted are networks, as CIDRs. Each connection from them must begin with a
	// PROXY protocol v2 header, and none from elsewhere may.
	Trusted []string `yaml:"trusted" doc:"networks of the balancers in front, which must begin each connection with PROXY protocol v2"`
}

// RevocationSettings says where news of revoked grants come from.
type RevocationSettings struct {
	// Servers are the control nodes, as https URLs. None: the certificate alone decides.
	Servers      []string      `yaml:"servers" doc:"control nodes, as https URLs"`
	StateFile    string        `yaml:"state_file" doc:"where revocations are kept"`
	MaxStaleness time.Duration `yaml:"max_staleness" doc:"refuse everybody once news is this old; 0: never"`
	Skew         time.Duration `yaml:"skew" doc:"how much longer than its certificate a revocation is kept (default 1m)"`
}

// AccessLogSettings says where access records go.
type AccessLogSettings struct {
	// Path is a file, made with mode 0600, or `-` for standard output.
	Path      string `yaml:"path" doc:"file, or - for standard output"`
	OnFailure string `yaml:"on_failure" doc:"deny (default) or allow, while records cannot be written"`

	MaxSize  Size          `yaml:"max_size" doc:"begin a new file before this one is larger, such as 100MiB; 0: never"`
	MaxAge   time.Duration `yaml:"max_age" doc:"begin a new file once this one is so old; 0: never"`
	Keep     int           `yaml:"keep" doc:"how many files to keep that were put aside; 0: all"`
	Compress bool          `yaml:"compress" doc:"compress files that were put aside, with gzip"`
}

// DrainSettings says how connections are brought to their end.
type DrainSettings struct {
	// BeforeExpiry is how long before NotAfter clients are told to reconnect (default 5s).
	BeforeExpiry time.Duration `yaml:"before_expiry" doc:"how long before expiry clients are told to reconnect (default 5s)"`
	Shutdown     time.Duration `yaml:"shutdown" doc:"how long requests may take once the proxy stops (default 30s)"`
}

// LimitSettings bounds what peers can make the proxy hold.
type LimitSettings struct {
	MaxConnections         int           `yaml:"max_connections" doc:"connections at once (default 10000)"`
	MaxConnectionsPerGrant int           `yaml:"max_connections_per_grant" doc:"connections at once of one grant, or of one identity without (default 1000)"`
	MaxRequestsPerGrant    int           `yaml:"max_requests_per_grant" doc:"requests at once of one grant over HTTP/2, on all its connections (default 2000)"`
	MaxHandshakes          int           `yaml:"max_handshakes" doc:"handshakes at once (default 2000)"`
	MaxStreams             int           `yaml:"max_streams" doc:"requests at once on one HTTP/2 connection (default 250)"`
	MaxHeaderBytes         int           `yaml:"max_header_bytes" doc:"size of a request head (default 65536)"`
	MaxTargetBytes         int           `yaml:"max_target_bytes" doc:"length of a request target (default 8192)"`
	MaxBodyBytes           int64         `yaml:"max_body_bytes" doc:"size of a request body (default 0: any)"`
	HandshakeTimeout       time.Duration `yaml:"handshake_timeout" doc:"for a handshake (default 5s)"`
	HeaderTimeout          time.Duration `yaml:"header_timeout" doc:"for a request head to arrive (default 10s)"`
	IdleTimeout            time.Duration `yaml:"idle_timeout" doc:"without a request (default 2m)"`
	DialTimeout            time.Duration `yaml:"dial_timeout" doc:"to the upstream (default 5s)"`

	Sources        []string `yaml:"sources" doc:"networks that clients come from, such as 10.0.0.0/8; empty: any"`
	Hours          []string `yaml:"hours" doc:"when the service may be used, such as Mon-Fri 08:00-18:00; empty: always"`
	TimeZone       string   `yaml:"time_zone" doc:"of hours, such as Europe/Zurich"`
	RatePerGrant   string   `yaml:"rate_per_grant" doc:"requests of one grant, such as 20/s or 600/m; empty: any"`
	RatePerSubject string   `yaml:"rate_per_subject" doc:"requests of one subject, over all of its grants"`
}

// ErrSettings is returned when a proxy's configuration cannot be used. Its text
// names the file, the line and the key of every mistake.
var ErrSettings = errors.New("bad proxy configuration")

// LoadSettings reads a configuration file. Unknown and repeated keys, a second
// document and values of the wrong type are refused with their line; New
// refuses the rest.
func LoadSettings(path string) (Settings, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Settings{}, fmt.Errorf("%w: %w", ErrSettings, err)
	}
	return parseSettings(path, data)
}

func parseSettings(path string, data []byte) (Settings, error) {
	s := Settings{file: path, lines: make(map[string]int)}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		return Settings{}, yamlError(path, err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return Settings{}, fmt.Errorf("%w: %s:%d: a second document; keep one", ErrSettings, path, max(more.Line, 1))
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return Settings{}, yamlError(path, err)
	}
	if len(root.Content) == 1 {
		keyLines("", root.Content[0], s.lines)
	}
	s.resolve(filepath.Dir(path))
	return s, nil
}

// resolve makes relative paths start at the configuration file's folder, so that
// the working directory of whoever starts the proxy changes nothing.
func (s *Settings) resolve(dir string) {
	paths := []*string{&s.Certificate, &s.Key, &s.IdentityBundle, &s.GrantsBundle, &s.RootsFile, &s.Revocation.StateFile, &s.AccessLog.Path}
	paths = append(paths, s.Postgres.paths()...)
	for i := range s.Services {
		paths = append(paths, &s.Services[i].Certificate, &s.Services[i].Key)
		paths = append(paths, s.Services[i].Postgres.paths()...)
	}
	for _, p := range paths {
		if *p != "" && *p != "-" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// keyLines notes the line of every key, as "limits.max_streams" or "hosts[1]".
func keyLines(prefix string, n *yaml.Node, lines map[string]int) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := n.Content[i].Value
			if prefix != "" {
				name = prefix + "." + name
			}
			lines[name] = n.Content[i].Line
			keyLines(name, n.Content[i+1], lines)
		}
	case yaml.SequenceNode:
		for i, e := range n.Content {
			name := prefix + "[" + strconv.Itoa(i) + "]"
			lines[name] = e.Line
			keyLines(name, e, lines)
		}
	case yaml.AliasNode, yaml.DocumentNode, yaml.ScalarNode:
	}
}

// yamlError puts the file's name before each of the decoder's lines.
func yamlError(path string, err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		text := strings.TrimPrefix(err.Error(), "yaml: ")
		if errors.Is(err, io.EOF) {
			text = "the file is empty"
		}
		return fmt.Errorf("%w: %s: %s", ErrSettings, at(path, text), trimLine(text))
	}
	all := make([]error, 0, len(te.Errors))
	for _, text := range te.Errors {
		what := trimLine(text)
		if f := strings.Fields(what); len(f) > 5 && f[0] == "field" && f[2] == "not" {
			what = fmt.Sprintf("unknown key %q", f[1])
		}
		all = append(all, fmt.Errorf("%w: %s: %s", ErrSettings, at(path, text), what))
	}
	return errors.Join(all...)
}

func at(path, text string) string {
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if line, _, ok := strings.Cut(rest, ":"); ok {
			return path + ":" + line
		}
	}
	return path
}

func trimLine(text string) string {
	if strings.HasPrefix(text, "line ") {
		if _, what, ok := strings.Cut(text, ": "); ok {
			return what
		}
	}
	return text
}

// mistake names the place of a value that parses and cannot be meant.
func (s *Settings) mistake(key, format string, args ...any) error {
	place := s.whose(key)
	if s.file != "" {
		place = s.file + ": " + s.whose(key)
		if s.in != "" {
			if line, ok := s.lines[s.in+"."+key]; ok {
				return fmt.Errorf("%w: %s:%d: %s.%s: %s", ErrSettings, s.file, line, s.in, key, fmt.Sprintf(format, args...))
			}
		}
		for k := s.whose(key); k != ""; k = parentKey(k) {
			if line, ok := s.lines[k]; ok {
				place = s.file + ":" + strconv.Itoa(line) + ": " + s.whose(key)
				break
			}
		}
	}
	return fmt.Errorf("%w: %s: %s", ErrSettings, place, fmt.Sprintf(format, args...))
}

func parentKey(key string) string {
	if i := strings.LastIndexAny(key, ".["); i >= 0 {
		return key[:i]
	}
	return ""
}
