package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/internal/near"
)

type sample struct {
	Node   string `yaml:"node" doc:"name of the node"`
	Listen struct {
		API string `yaml:"api" doc:"address of the API"`
	} `yaml:"listen"`
	Skew       time.Duration `yaml:"skew"`
	Hosts      []string      `yaml:"hosts"`
	Strict     bool          `yaml:"strict"`
	Limit      int           `yaml:"limit"`
	Rules      []rule        `yaml:"rules"`
	Revocation struct {
		MaxStaleness time.Duration `yaml:"max_staleness"`
	} `yaml:"revocation"`
	Hidden string `yaml:"-"`
}

type rule struct {
	Name string `yaml:"name"`
}

func TestDecode(t *testing.T) {
	got := sample{Skew: time.Second, Limit: 3}
	text := `# a comment
node: 1
listen: {api: "127.0.0.1:8443"}
hosts: [a, b]
strict: true
rules:
  - name: x
revocation:
  max_staleness: 10s
`
	if err := Decode("f.yaml", []byte(text), &got); err != nil {
		t.Fatal(err)
	}
	want := sample{Node: "1", Skew: time.Second, Limit: 3, Hosts: []string{"a", "b"}, Strict: true, Rules: []rule{{"x"}}}
	want.Listen.API = "127.0.0.1:8443"
	want.Revocation.MaxStaleness = 10 * time.Second
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a misspelt key", "node: a\nskwe: 10s\n", "f.yaml:2: skwe: unknown key; did you mean skew?"},
		{"a misspelt key inside", "revocation:\n  max_stalenes: 1s\n", "f.yaml:2: revocation.max_stalenes: unknown key; did you mean revocation.max_staleness?"},
		{"a key in the wrong place", "max_staleness: 1s\n", "f.yaml:1: max_staleness: unknown key; it belongs at revocation.max_staleness"},
		{"a field that is no key", "Hidden: x\n", "f.yaml:1: Hidden: unknown key; known here: node, listen,"},
		{"a key twice", "node: a\nlimit: 1\nnode: b\n", "f.yaml:3: node: given twice, first on line 1"},
		{"a key inside a list", "rules:\n  - nam: x\n", "f.yaml:2: rules[0].nam: unknown key; did you mean rules[0].name?"},
		{"no duration", "skew: 10\n", `f.yaml:1: skew: want a duration such as 10s or 5m, got "10"`},
		{"no number", "limit: ten\n", `f.yaml:1: limit: want a whole number, got "ten"`},
		{"yes is not true", "strict: yes\n", `f.yaml:1: strict: want true or false, got "yes"`},
		{"a list for a text", "node: [a]\n", "f.yaml:1: node: want a text, got a list"},
		{"a text for a list", "hosts: a\n", `f.yaml:1: hosts: want a list, got "a"`},
		{"a text for a section", "listen: a\n", `f.yaml:1: listen: want keys and values, got "a"`},
		{"nothing for a text", "node:\n", "f.yaml:1: node: want a text, got nothing"},
		{"an alias", "node: &a x\nlisten: {api: *a}\n", "f.yaml:1: node: aliases"},
		{"two documents", "node: a\n---\nnode: b\n", "a second document"},
		{"empty", "", "f.yaml:1: the file is empty"},
		{"a comment alone", "# nothing\n", "f.yaml:1: the file is empty"},
		{"a marker alone", "---\n", ": the file: want keys and values, got nothing"},
		{"a list", "- a\n", "f.yaml:1: the file: want keys and values, got a list"},
		{"no YAML", "node: a\n\tb: c\n", "f.yaml:2: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Decode("f.yaml", []byte(tt.text), new(sample))
			if !errors.Is(err, ErrConfig) || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
}

func TestDecodeSaysEverythingAtOnce(t *testing.T) {
	err := Decode("f.yaml", []byte("nod: a\nskew: x\nlimit: y\n"), new(sample))
	if got := strings.Count(fmt.Sprint(err), "f.yaml:"); got != 3 {
		t.Errorf("%d mistakes named, want 3: %v", got, err)
	}
}

func TestFieldsAndEnviron(t *testing.T) {
	var s sample
	fields := Fields(&s)
	var names []string
	for _, f := range fields {
		names = append(names, f.Path+" "+f.Env()+" --"+f.Flag())
	}
	want := []string{
		"node HALLPASS_NODE --node", "listen.api HALLPASS_LISTEN_API --listen-api", "skew HALLPASS_SKEW --skew",
		"hosts HALLPASS_HOSTS --hosts", "strict HALLPASS_STRICT --strict", "limit HALLPASS_LIMIT --limit",
		"revocation.max_staleness HALLPASS_REVOCATION_MAX_STALENESS --revocation-max-staleness",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Fatalf("fields (-want +got):\n%s", diff)
	}
	environ := []string{
		"PATH=/bin", "HALLPASS_NODE=n1", "HALLPASS_HOSTS=a, b", "HALLPASS_REVOCATION_MAX_STALENESS=5s",
		"HALLPASS_SERVER=https://x", "HALLPASS_STRICT=true", "HALLPASS_LIMIT=7",
	}
	if err := Environ(fields, environ, []string{"HALLPASS_SERVER"}); err != nil {
		t.Fatal(err)
	}
	wantSample := sample{Node: "n1", Hosts: []string{"a", "b"}, Strict: true, Limit: 7}
	wantSample.Revocation.MaxStaleness = 5 * time.Second
	if diff := cmp.Diff(wantSample, s); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
	for _, f := range fields {
		was := f.String()
		if err := f.Set(was); err != nil || f.String() != was {
			t.Errorf("%s: Set(%q): %v, then %q", f.Path, was, err, f.String())
		}
	}
	for entry, want := range map[string]string{
		"HALLPASS_NOD=n1": "unknown variable HALLPASS_NOD; did you mean HALLPASS_NODE?",
		"HALLPASS_SKEW=1": `HALLPASS_SKEW: bad configuration: skew: want a duration such as 10s or 5m, got "1"`,
	} {
		err := Environ(fields, []string{entry}, nil)
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", entry, err, want)
		}
	}
}

// FuzzDecode holds what is taken from a file against what yaml.v3 reads in it by itself: one mapping in which no key is there
// twice, and the same texts. A file with a mistake is told as such, with its line.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("node: 1\nlisten: {api: \"127.0.0.1:8443\"}\nhosts: [a, b]\nstrict: true\nrules:\n  - name: x\nrevocation:\n  max_staleness: 10s\n"), uint16(0), byte(' '))
	f.Add([]byte("# none\n---\nlimit: 3\nskew: 1m\n"), uint16(0), byte(' '))
	f.Add([]byte("node: &a x\nhosts: [*a]\n"), uint16(0), byte(' '))
	f.Add([]byte("node: a\nnodde: b\nhosts: [a]\n"), uint16(2), byte(' '))
	f.Add([]byte("limit: 1\nskew: 1s\nskeww: 2s\n"), uint16(2), byte(' '))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			tryDecode(t, data)
		}
	})
}

func tryDecode(t *testing.T, data []byte) {
	t.Helper()
	var got sample
	if err := Decode("f.yaml", data, &got); err != nil {
		if !errors.Is(err, ErrConfig) || !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%v", err)
		}
		return
	}
	var m map[string]yaml.Node
	if err := yaml.Unmarshal(data, &m); err != nil {
		t.Fatalf("%q is taken, and yaml says %v", data, err)
	}
	node, hosts, rules := m["node"], m["hosts"], m["rules"]
	if node.Value != got.Node || len(hosts.Content) != len(got.Hosts) || len(rules.Content) != len(got.Rules) {
		t.Fatalf("%q is taken as %+v", data, got)
	}
	for i, h := range hosts.Content {
		if h.Value != got.Hosts[i] {
			t.Errorf("host %q is taken as %q", h.Value, got.Hosts[i])
		}
	}
}
