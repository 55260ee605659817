package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// Room is one package and which of ours it may import.
type Room struct {
	Name string
	// May lists the rooms it may import; a room stands for all packages below it, and
	// "*" for anything.
	May []string
}

// Wall says that nothing in From may reach, through any number of imports, what To names.
type Wall struct {
	From []string // rooms of ours
	To   []string // rooms of ours, or import path prefixes outside the module
	Why  string
}

// Rules is everything that Check checks.
type Rules struct {
	Rooms []Room
	Walls []Wall
	// OnlyFrom maps an import path prefix to the rooms that may import it directly.
	OnlyFrom map[string][]string
	// Pure lists the rooms that may name none of Impure.
	Pure   []string
	Impure []string
}

// Hallpass returns the rules of docs/architecture.md.
func Hallpass() Rules {
	return Rules{
		Rooms: []Room{
			{Name: "grant"},
			{Name: "policy", May: []string{"grant"}},
			{Name: "policy/condition", May: []string{"grant", "policy"}},
			{Name: "audit", May: []string{"grant"}},
			{Name: "trust"},
			{Name: "emergency", May: []string{"grant"}},
			{Name: "raftstore"},
			{Name: "approval", May: []string{"grant", "policy", "audit", "trust", "emergency"}},
			{Name: "approval/api", May: []string{"approval", "grant", "policy", "audit"}},
			{Name: "approval/bridge", May: []string{"approval/api"}},
			{Name: "approval/console", May: []string{"approval/api", "audit", "grant", "policy"}},
			{Name: "approval/notify", May: []string{"approval", "grant"}},
			{Name: "ca", May: []string{"grant", "trust", "emergency"}},
			{Name: "ca/kms", May: []string{"ca"}},
			{Name: "signer", May: []string{"approval/api", "ca", "trust"}},
			{Name: "control", May: []string{
				"grant", "policy", "policy/condition", "audit", "raftstore", "approval", "approval/api", "approval/notify", "ca", "trust", "emergency", "internal/telemetry",
			}},
			{Name: "proxy", May: []string{"grant", "trust", "emergency"}},
			{Name: "proxy/records"},
			{Name: "testenv", May: []string{"*"}},
			{Name: "bench", May: []string{"*"}},
			{Name: "deploy", May: []string{"approval/api", "audit", "grant", "internal/ledger"}},
			{Name: "cmd/hallpass", May: []string{
				"control", "proxy", "proxy/records", "signer", "approval/api", "approval/bridge", "approval/console", "approval/notify", "audit", "ca", "ca/kms", "grant", "policy", "policy/condition", "trust", "emergency", "internal",
			}},
			{Name: "internal/telemetry"},
			{Name: "internal/archtest"},
			{Name: "internal/config"},
			{Name: "internal/demo", May: []string{"internal/loopback"}},
			{Name: "internal/faults"},
			{Name: "internal/loopback"},
			{Name: "internal/ledger", May: []string{"approval/api", "audit", "ca"}},
			{Name: "internal/mutants"},
			{Name: "internal/near"},
			{Name: "internal/realpg", May: []string{"internal/loopback"}},
			{Name: "internal/sim", May: []string{"approval", "approval/api", "audit", "ca", "control", "raftstore"}},
		},
		Walls: []Wall{
			{
				From: []string{"proxy"}, To: []string{"approval", "policy", "raftstore", "ca", "control", "audit"},
				Why: "a proxy decides from the certificate, its bundles and its own file alone",
			},
			{
				From: []string{"raftstore"}, To: []string{"approval", "grant", "policy", "audit", "ca", "control", "proxy"},
				Why: "the store knows bytes, not approvals",
			},
			{
				From: []string{"approval", "policy", "audit", "grant", "trust", "emergency"}, To: []string{"raftstore", "ca", "control", "proxy", "github.com/hashicorp/raft"},
				Why: "the state machine is one function of its commands on every node",
			},
			{
				From: []string{"approval", "audit", "grant", "proxy", "raftstore"}, To: []string{"cel.dev/", "policy/condition"},
				Why: "conditions are answered before the commit: two releases of their evaluator may come to two answers",
			},
			{
				From: []string{"proxy", "raftstore", "approval", "policy", "audit", "grant", "trust", "emergency"},
				To:   []string{"github.com/smallstep/", "go.step.sm/"},
				Why:  "certificate authority code is reached through ca alone",
			},
			{
				From: []string{"control", "proxy", "signer", "approval", "raftstore", "policy", "audit", "grant", "trust", "testenv", "internal"},
				To:   append([]string{"ca/kms"}, KMS()...),
				Why:  "the right to use a KMS is the command line's and the signer's, by whoever hands them one; no node has it",
			},
			{
				From: []string{"control", "proxy", "raftstore", "approval/api"}, To: []string{"approval/console", "approval/bridge"},
				Why: "the console and the bridge to Slack are callers of the API like any other; no node serves them, nor has Slack's signing secret",
			},
			{
				From: []string{"control", "proxy", "approval", "raftstore"}, To: []string{"signer"},
				Why: "the signer is a process of its own",
			},
			{
				From: []string{"cmd", "control", "proxy", "approval", "ca", "signer", "raftstore", "policy", "audit", "grant"},
				To:   []string{"testenv", "internal/sim"},
				Why:  "nothing in the binary imports testenv or the simulation",
			},
			{
				From: []string{"cmd", "control", "proxy", "approval", "ca", "raftstore", "policy", "audit", "grant", "trust", "emergency", "testenv", "bench"},
				To:   []string{"internal/faults"},
				Why:  "a failpoint is put in by an overlay, for a test, and never ships",
			},
		},
		OnlyFrom: map[string][]string{
			"cel.dev/cel-go":                   {"policy/condition"},
			"github.com/smallstep/":            {"ca"},
			"go.step.sm/":                      {"ca"},
			"go.step.sm/crypto/kms":            {"ca/kms"},
			"github.com/ThalesIgnite/":         {},
			"github.com/hashicorp/raft":        {"raftstore", "internal/sim"},
			"github.com/hashicorp/raft-boltdb": {"raftstore"},
			"go.etcd.io/bbolt":                 {"raftstore"},
			"testing":                          {"testenv", "bench"},
			"github.com/danielgtaylor/":        {"approval/api"},
			"filippo.io/age":                   {"ca", "cmd/hallpass", "testenv"},
			"github.com/cloudflare/circl":      {"ca"},
			"github.com/wneessen/go-mail":      {"approval/notify"},
			"github.com/slack-go/slack":        {"approval/notify"},
		},
		Pure: []string{"grant", "policy", "policy/condition", "approval", "trust", "emergency"},
		Impure: []string{
			"net", "net/http", "net/rpc", "net/smtp", "os", "os/exec", "os/signal", "syscall",
			"crypto/rand", "math/rand", "math/rand/v2", "log", "plugin", "unsafe",
		},
	}
}

// KMS are the packages that open one: import paths, and what they are below. They are
// linked by the build with the tag kms alone.
func KMS() []string {
	var all []string
	for _, name := range []string{"pkcs11", "awskms", "azurekms", "cloudkms", "tpmkms", "yubikey", "sshagentkms", "platform"} {
		all = append(all, "go.step.sm/crypto/kms/"+name)
	}
	return append(all, "github.com/ThalesIgnite/", "github.com/miekg/", "github.com/aws/", "github.com/Azure/", "cloud.google.com/")
}

// Check returns every crossing of a wall, one sentence each, sorted.
func (r Rules) Check(g Graph) []string {
	var bad []string
	for _, name := range g.Ours() {
		room, ok := r.room(name)
		if !ok {
			bad = append(bad, name+": is in no room: give it one in internal/archtest, with what it may import")
			continue
		}
		bad = append(bad, r.imports(g, name, room)...)
	}
	for _, w := range r.Walls {
		bad = append(bad, w.check(g)...)
	}
	slices.Sort(bad)
	return slices.Compact(bad)
}

// imports checks the direct imports of one package of ours.
func (r Rules) imports(g Graph, name string, room Room) []string {
	var bad []string
	for _, path := range g[Module+"/"+name].Imports {
		if other, ours := short(path); ours && !allowed(room.May, name, other) {
			bad = append(bad, fmt.Sprintf("%s imports %s, which its room may not", name, other))
		}
		for prefix, rooms := range r.OnlyFrom {
			if matches(path, prefix) && !inAny(name, rooms) {
				bad = append(bad, fmt.Sprintf("%s imports %s, which only %v may", name, path, rooms))
			}
		}
		if slices.Contains(r.Pure, name) && slices.Contains(r.Impure, path) {
			bad = append(bad, fmt.Sprintf("%s imports %s, and is pure", name, path))
		}
	}
	return bad
}

func (w Wall) check(g Graph) []string {
	var bad []string
	for _, name := range g.Ours() {
		if !inAny(name, w.From) {
			continue
		}
		chain := g.Path(Module+"/"+name, func(path string) bool {
			other, ours := short(path)
			for _, to := range w.To {
				// A wall between rooms says nothing of a room's own parts.
				if ours && below(other, to) && !inAny(other, w.From) || !ours && matches(path, to) {
					return true
				}
			}
			return false
		})
		if chain != nil {
			bad = append(bad, fmt.Sprintf("%s: %s", strings.Join(chain, " → "), w.Why))
		}
	}
	return bad
}

// room returns the innermost room that name lies in.
func (r Rules) room(name string) (Room, bool) {
	var best Room
	for _, room := range r.Rooms {
		if below(name, room.Name) && len(room.Name) >= len(best.Name) {
			best = room
		}
	}
	return best, best.Name != ""
}

// allowed reports whether a package may import another of ours: one of its May rooms, or a part
// of the same package ("proxy" imports "proxy/pgwire").
func allowed(may []string, name, other string) bool {
	if below(other, name) {
		return true
	}
	for _, m := range may {
		if m == "*" || m == other || m == "internal" && below(other, m) {
			return true
		}
	}
	return false
}

func inAny(name string, rooms []string) bool {
	return slices.ContainsFunc(rooms, func(room string) bool { return below(name, room) })
}

// matches reports whether an import path outside the module is prefix or lies below it. A prefix
// that ends in "/" is taken as it is.
func matches(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/") ||
		strings.HasPrefix(path, prefix+".v")
}
