package ca

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/internal/near"
)

func TestNewNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	o := testNodeOptions(1)
	request := got(NewNode(dir, o))(t)
	want := []string{
		"drwx------ .", "-rw------- api.key", "-rw------- audit.key", "-rw------- grants-issuer.key",
		"-rw------- identity-issuer.key", "-rw-r--r-- node-request.json", "-rw------- transport.key",
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	got(request.check(testTD()))(t)
	if diff := cmp.Diff(request, got(LoadNodeRequest(filepath.Join(dir, NodeRequestFile)))(t)); diff != "" {
		t.Errorf("the file says something else:\n%s", diff)
	}
	if !strings.HasPrefix(request.AuditKey, "acme.test/hallpass/node/n1+") {
		t.Errorf("audit key %s", request.AuditKey)
	}
	text := string(got(os.ReadFile(filepath.Join(dir, NodeRequestFile)))(t))
	if strings.Contains(text, "PRIVATE") {
		t.Error("a private key is in the request")
	}

	// Again: the same keys, and the very same request.
	again := got(NewNode(dir, o))(t)
	if diff := cmp.Diff(request, again); diff != "" {
		t.Errorf("a second run changed the request:\n%s", diff)
	}
	// Other addresses: the same keys in a new request.
	o.APIAddress, o.DNSNames = "n1.acme.test:8443", nil
	moved := got(NewNode(dir, o))(t)
	before, after := got(request.check(testTD()))(t), got(moved.check(testTD()))(t)
	if !before.transport.Equal(after.transport) || !samePublicKey(before.identity, after.identity) || !samePublicKey(before.grants, after.grants) ||
		!samePublicKey(before.api, after.api) || request.AuditKey != moved.AuditKey {
		t.Error("a second run changed keys")
	}
	if diff := cmp.Diff([]string{"n1.acme.test"}, moved.DNSNames); diff != "" {
		t.Errorf("DNS names (-want +got):\n%s", diff)
	}
	// A crash half way: what is missing is made, what is there stays.
	must(t, os.Remove(filepath.Join(dir, grantIssuerKeyFile)))
	must(t, os.Remove(filepath.Join(dir, NodeRequestFile)))
	resumed := got(NewNode(dir, o))(t)
	keys := got(resumed.check(testTD()))(t)
	if !samePublicKey(keys.identity, after.identity) || samePublicKey(keys.grants, after.grants) {
		t.Error("after a crash other keys are new than those that were missing")
	}
}

func TestNewNodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*NodeOptions){
		"no id":                func(o *NodeOptions) { o.ID = "" },
		"an id in upper case":  func(o *NodeOptions) { o.ID = "N1" },
		"an id with a slash":   func(o *NodeOptions) { o.ID = "a/b" },
		"a long id":            func(o *NodeOptions) { o.ID = strings.Repeat("a", 64) },
		"no trust domain":      func(o *NodeOptions) { o.TrustDomain = NodeOptions{}.TrustDomain },
		"no raft address":      func(o *NodeOptions) { o.RaftAddress = "" },
		"no raft port":         func(o *NodeOptions) { o.RaftAddress = "127.0.0.1" },
		"port 0":               func(o *NodeOptions) { o.RaftAddress = "127.0.0.1:0" },
		"port 65536":           func(o *NodeOptions) { o.RaftAddress = "127.0.0.1:65536" },
		"a port by name":       func(o *NodeOptions) { o.RaftAddress = "127.0.0.1:http" },
		"no host":              func(o *NodeOptions) { o.APIAddress = ":8443" },
		"one address for both": func(o *NodeOptions) { o.APIAddress = o.RaftAddress },
		"a bad DNS name":       func(o *NodeOptions) { o.DNSNames = []string{"a b"} },
		"all addresses":        func(o *NodeOptions) { o.IPs = []net.IP{net.IPv4zero} },
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		o := testNodeOptions(1)
		change(&o)
		if _, err := NewNode(dir, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: keys were made", name)
		}
	}

	f := newFixture(t, 1)
	dir := f.nodeDirs[0]
	if _, err := NewNode(dir, testNodeOptions(2)); !errors.Is(err, ErrExists) {
		t.Errorf("another node in the same folder: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, NodeRequestFile)))
	if _, err := NewNode(dir, testNodeOptions(2)); !errors.Is(err, ErrExists) {
		t.Errorf("another node over the same keys: %v", err)
	}
	got(NewNode(dir, testNodeOptions(1)))(t)
	must(t, os.WriteFile(filepath.Join(dir, apiKeyFile), []byte("not a key"), 0o600))
	if _, err := NewNode(dir, testNodeOptions(1)); !errors.Is(err, ErrKey) {
		t.Errorf("with a broken key: %v", err)
	}
	must(t, os.Chmod(filepath.Join(dir, identityIssuerKeyFile), 0o644))
	if _, err := NewNode(dir, testNodeOptions(1)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("with a key that others may read: %v", err)
	}
	if text := string(got(os.ReadFile(filepath.Join(dir, apiKeyFile)))(t)); text != "not a key" {
		t.Error("a key was overwritten")
	}
}

// FuzzParseNodeRequest: what is read is one JSON object, and is written and read again as the same; all else is ErrInvalid.
func FuzzParseNodeRequest(f *testing.F) {
	f.Add(got(newFixture(f, 1).requests[0].Encode())(f), uint16(0), byte(' '))
	f.Add([]byte(`{"id":"n1","dns_names":["a"],"ips":["127.0.0.1"],"proof":"\u2014"}`), uint16(0), byte(' '))
	f.Fuzz(func(t *testing.T, text []byte, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			r, err := ParseNodeRequest(text)
			if err != nil {
				if !errors.Is(err, ErrInvalid) {
					t.Error(err)
				}
				continue
			}
			if !json.Valid(text) {
				t.Errorf("%q is read, and is no JSON", text)
			}
			if again := got(ParseNodeRequest(got(r.Encode())(t)))(t); !reflect.DeepEqual(r, again) {
				t.Errorf("%+v is written as %+v", r, again)
			}
		}
	})
}
