package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func load(t *testing.T) Graph {
	t.Helper()
	root := filepath.Join("..", "..")
	seeEveryFile(t, root)
	g, err := Load(t.Context(), root, "integration,compose,faults,kms")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// seeEveryFile looks at every source file of the module. What `go list` reads in its own process
// is invisible to the cache of go test, which would go on printing yesterday's "ok".
func seeEveryFile(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go"):
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheWallsStand(t *testing.T) {
	g := load(t)
	if len(g.Ours()) < 2 {
		t.Fatalf("go list found only %v", g.Ours())
	}
	for _, crossing := range Hallpass().Check(g) {
		t.Error(crossing)
	}
}

func TestPurePackagesReadNoClock(t *testing.T) {
	g := load(t)
	for _, name := range Hallpass().Pure {
		p, ok := g[Module+"/"+name]
		if !ok {
			t.Errorf("%s: no such package", name)
			continue
		}
		uses, err := Clocks(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, use := range uses {
			t.Errorf("%s is pure: time and identifiers arrive in the command: %s", name, use)
		}
	}
}

// A test of walls that cannot fail keeps nothing out, so each kind of crossing is tried.
func TestCheckSeesACrossing(t *testing.T) {
	at := func(name string, imports ...string) Package {
		for i, imp := range imports {
			if ours, ok := strings.CutPrefix(imp, "./"); ok {
				imports[i] = Module + "/" + ours
			}
		}
		return Package{ImportPath: Module + "/" + name, Imports: imports}
	}
	tests := []struct {
		name string
		have []Package
		want []string // a part of each sentence
	}{
		{"nothing crossed", []Package{
			at("grant", "strings"), at("proxy", "./grant", "net/http"), at("proxy/pgwire", "net"),
			at("policy", "./grant"), at("approval", "./policy", "./grant"), at("ca", "github.com/smallstep/certificates/cas/softcas"),
		}, nil},
		{
			"a proxy imports the state machine",
			[]Package{at("proxy", "./approval"), at("approval")},
			[]string{"proxy imports approval", "/proxy → github.com/hallpass/hallpass/approval:"},
		},
		{
			"a proxy reaches the certificate authority through another module",
			[]Package{at("proxy", "example.test/x"), {ImportPath: "example.test/x", Imports: []string{"github.com/smallstep/certificates/authority"}}},
			[]string{"/proxy → example.test/x → github.com/smallstep/certificates/authority"},
		},
		{"the state machine opens a file", []Package{at("approval", "os")}, []string{"approval imports os, and is pure"}},
		{"the store knows approvals", []Package{at("raftstore", "./grant"), at("grant")}, []string{"raftstore imports grant", "/raftstore → "}},
		{"the binary imports testenv", []Package{at("cmd/hallpass", "./testenv"), at("testenv")}, []string{"cmd/hallpass imports testenv", "/cmd/hallpass → "}},
		{"a room nobody planned", []Package{at("helpers")}, []string{"helpers: is in no room"}},
		{"smallstep outside ca", []Package{at("control", "github.com/smallstep/certificates/cas/softcas")}, []string{"control imports github.com/smallstep/"}},
		{"a library imports testing", []Package{at("audit", "testing")}, []string{"audit imports testing"}},
		{"a look-alike is not the room", []Package{at("proxy", "example.test/approval"), {ImportPath: "example.test/approval"}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := Graph{}
			for _, p := range tt.have {
				g[p.ImportPath] = p
			}
			got := Hallpass().Check(g)
			if len(got) != len(tt.want) {
				t.Fatalf("got %d crossings, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.Join(got, "\n"), want) {
					t.Errorf("no crossing says %q:\n%s", want, strings.Join(got, "\n"))
				}
			}
		})
	}
}

func TestClocksSeesEveryName(t *testing.T) {
	dir := t.TempDir()
	src := `package p

import (
	clock "time"

	"github.com/google/uuid"
)

func f(now clock.Time) (clock.Duration, string) {
	_ = clock.UnixMilli(1)
	_ = clock.Now()
	g := clock.Since
	return g(now), uuid.NewString()
}
`
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	uses, err := Clocks(Package{Dir: dir, GoFiles: []string{"p.go"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, use := range uses {
		got = append(got, use[strings.LastIndex(use, " ")+1:])
	}
	if diff := cmp.Diff([]string{"clock.Now", "clock.Since", "uuid.NewString"}, got); diff != "" {
		t.Errorf("uses (-want +got):\n%s", diff)
	}
}

// The plain binary opens no KMS: it is one file without cgo, and without the clouds'
// libraries. What the tag brings comes through ca/kms.
func TestPlainBinaryHasNoKMS(t *testing.T) {
	root := filepath.Join("..", "..")
	seeEveryFile(t, root)
	for tags, want := range map[string]bool{"": false, "kms": true} {
		g, err := Load(t.Context(), root, tags)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range KMS() {
			chain := g.Path(Module+"/cmd/hallpass", func(path string) bool { return matches(path, target) })
			if !want && chain != nil {
				t.Errorf("without the tag: %s", strings.Join(chain, " → "))
			}
			if want && chain != nil && !slices.Contains(chain, Module+"/ca/kms") {
				t.Errorf("not through ca/kms: %s", strings.Join(chain, " → "))
			}
			if want && chain == nil && strings.HasSuffix(target, "/pkcs11") {
				t.Error("with the tag there is no PKCS#11")
			}
		}
	}
}
