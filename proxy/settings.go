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
	Protocol string   `yaml:"protocol" doc:"http (HTTP/1.1, HTTP/2, gRPC, WebSocket; default) or tcp"`
	Hosts    []string `yaml:"hosts" doc:"names that Host and :authority may carry, with any port"`
	Upstream string   `yaml:"upstream" doc:"http://HOST:PORT, h2c://HOST:PORT, tcp://HOST:PORT or unix:///PATH"`

	TrustDomain      string `yaml:"trust_domain" doc:"the identities' trust domain"`
	GrantTrustDomain string `yaml:"grant_trust_domain" doc:"the grants' trust domain (default: grants. + trust_domain)"`
	Certificate      string `yaml:"certificate" doc:"the service's own certificate chain"`
	Key              string `yaml:"key" doc:"its private key"`
	IdentityBundle   string `yaml:"identity_bundle" doc:"the identities' roots"`
	GrantsBundle     string `yaml:"grants_bundle" doc:"the grants' roots"`

	AllowSemicolon bool `yaml:"allow_semicolon" doc:"let request paths hold ;"`

	Revocation RevocationSettings `yaml:"revocation"`
	AccessLog  AccessLogSettings  `yaml:"access_log"`
	Admin      string             `yaml:"admin" doc:"health and metrics: loopback HOST:PORT or unix:PATH; empty: none"`
	Drain      DrainSettings      `yaml:"drain"`
	Limits     LimitSettings      `yaml:"limits"`

	file  string
	lines map[string]int
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
	MaxHandshakes          int           `yaml:"max_handshakes" doc:"handshakes at once (default 2000)"`
	MaxStreams             int           `yaml:"max_streams" doc:"requests at once on one HTTP/2 connection (default 250)"`
	MaxHeaderBytes         int           `yaml:"max_header_bytes" doc:"size of a request head (default 65536)"`
	MaxTargetBytes         int           `yaml:"max_target_bytes" doc:"length of a request target (default 8192)"`
	HandshakeTimeout       time.Duration `yaml:"handshake_timeout" doc:"for a handshake (default 5s)"`
	HeaderTimeout          time.Duration `yaml:"header_timeout" doc:"for a request head to arrive (default 10s)"`
	IdleTimeout            time.Duration `yaml:"idle_timeout" doc:"without a request (default 2m)"`
	DialTimeout            time.Duration `yaml:"dial_timeout" doc:"to the upstream (default 5s)"`
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
	for _, p := range []*string{&s.Certificate, &s.Key, &s.IdentityBundle, &s.GrantsBundle, &s.Revocation.StateFile, &s.AccessLog.Path} {
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
	place := key
	if s.file != "" {
		place = s.file + ": " + key
		for k := key; k != ""; k = parentKey(k) {
			if line, ok := s.lines[k]; ok {
				place = s.file + ":" + strconv.Itoa(line) + ": " + key
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
