package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"
)

// The file is read here as compose 2.x reads it; `make test-compose` has whichever is installed.
func project(t *testing.T) *types.Project {
	t.Helper()
	file := filepath.Join("..", "docker-compose.yml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  "..",
		ConfigFiles: []types.ConfigFile{{Filename: file, Content: text}},
		Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("hallpass", true) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEveryContainerIsConfined(t *testing.T) {
	p := project(t)
	want := []string{"init", "n1", "n2", "n3", "proxy", "upstream"}
	if got := p.ServiceNames(); !slices.Equal(got, want) {
		t.Fatalf("services %v, want %v", got, want)
	}
	for name, s := range p.Services {
		if s.User != "65532:65532" || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) ||
			!slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Privileged || len(s.CapAdd) > 0 {
			t.Errorf("%s: user %q, read-only %t, cap_drop %v, security_opt %v", name, s.User, s.ReadOnly, s.CapDrop, s.SecurityOpt)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %s on %q, not on loopback alone", name, port.Published, port.HostIP)
			}
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeVolume {
				t.Errorf("%s mounts %s of the host", name, v.Source)
			}
		}
		if name != "init" && s.HealthCheck == nil {
			t.Errorf("%s has no health check", name)
		}
	}
}

func TestTheUpstreamIsReachedThroughTheProxyAlone(t *testing.T) {
	p := project(t)
	if !p.Networks["service"].Internal {
		t.Error("the service's network has a way out")
	}
	if ports := p.Services["upstream"].Ports; len(ports) > 0 {
		t.Errorf("the upstream publishes %v", ports)
	}
	for name, s := range p.Services {
		if _, on := s.Networks["service"]; on != (name == "upstream" || name == "proxy") {
			t.Errorf("%s on the service's network: %t", name, on)
		}
	}
	// A node's keys are mounted in that node, and where they are made.
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if owner, ok := strings.CutSuffix(v.Source, "-keys"); ok && name != owner && name != "init" {
				t.Errorf("%s mounts the keys of %s", name, owner)
			}
			if v.Source == "ca" && name != "init" {
				t.Errorf("%s mounts the certificate authority", name)
			}
		}
	}
}

// Compose 1.29 refuses, and some of 2.x only warn about, what is named here.
func TestNothingThatOnlyOneComposeReads(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	refused := []string{"name", "version", "include", "required", "start_interval", "env_file", "container_name", "develop", "configs", "pull_policy"}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			for i := 0; i < len(n.Content); i += 2 {
				if key := n.Content[i]; slices.Contains(refused, key.Value) {
					t.Errorf("line %d: %s", key.Line, key.Value)
				}
			}
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(&doc)
}
