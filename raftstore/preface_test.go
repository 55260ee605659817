package raftstore

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What two nodes of different versions say to each other first. A change here cuts a cluster in two while it is being
// upgraded: give the changed one another alpn instead, and let both be spoken.
func TestPrefaceBytes(t *testing.T) {
	p := preface{
		kind: streamRaft, cluster: clusterHash("acme"), lineage: lineage{1, 2, 15: 16},
		timing: Timing{Heartbeat: 300 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 150 * time.Millisecond},
	}
	want := "72" + // kind
		"618a712de22ca4e143004e6e6e424497623e290e4dfab374c3c67aa55a3e604a" + // cluster
		"01020000000000000000000000000010" + // lineage
		"0000000011e1a300" + "0000000017d78400" + "0000000008f0d180" // heartbeat, election, lease
	if got := hex.EncodeToString(p.encode()); got != want {
		t.Errorf("preface\n got %s\nwant %s", got, want)
	}
	if got := decodePreface(p.encode()); got != p {
		t.Errorf("decoded %+v, want %+v", got, p)
	}
	if n := len(p.encode()); n != prefaceSize {
		t.Errorf("%d bytes, want %d", n, prefaceSize)
	}
	r := reply{kind: refusedKind, standing: standingMember, lineage: lineage{3}, founding: [32]byte{4, 31: 5}, reason: "no"}
	want = "00" + "6d" + "03000000000000000000000000000000" + // refused, standing, lineage
		"0400000000000000000000000000000000000000000000000000000000000005" + "0002" + "6e6f" // founding, reason
	if got := hex.EncodeToString(r.encode()); got != want {
		t.Errorf("reply\n got %s\nwant %s", got, want)
	}
	got, err := readReply(bytes.NewReader(r.encode()))
	if err != nil || got != r {
		t.Errorf("read %+v, %v, want %+v", got, err, r)
	}
	for cut := range r.encode() {
		if _, err := readReply(bytes.NewReader(r.encode()[:cut])); err == nil {
			t.Errorf("a reply of %d bytes was taken", cut)
		}
	}
	r.reason = strings.Repeat("x", 2*maxReason)
	if got, err = readReply(bytes.NewReader(r.encode())); err != nil || len(got.reason) != maxReason {
		t.Errorf("a reason of %d bytes is read as %d, %v", len(r.reason), len(got.reason), err)
	}
}

func TestPrefaceRefuses(t *testing.T) {
	here := preface{kind: streamRaft, cluster: clusterHash("acme"), lineage: lineage{1}, timing: Timing{}.withDefaults()}
	for name, tt := range map[string]struct {
		spoil func(p *preface)
		want  string
	}{
		"the same":         {func(*preface) {}, ""},
		"a node without":   {func(p *preface) { p.lineage = lineage{} }, ""},
		"an application":   {func(p *preface) { p.kind = streamApp }, ""},
		"another kind":     {func(p *preface) { p.kind = 'x' }, "unknown stream kind 0x78"},
		"another cluster":  {func(p *preface) { p.cluster = clusterHash("acme2") }, "another cluster"},
		"another lineage":  {func(p *preface) { p.lineage = lineage{2} }, "another epoch"},
		"another timing":   {func(p *preface) { p.timing.Heartbeat = time.Second }, "heartbeat time-out is 1s and here it is 300ms"},
		"another election": {func(p *preface) { p.timing.Election = time.Second }, "election"},
		"another lease":    {func(p *preface) { p.timing.Lease = time.Second }, "lease"},
	} {
		t.Run(name, func(t *testing.T) {
			theirs := here
			tt.spoil(&theirs)
			text := ""
			if err := here.refuses(theirs); err != nil {
				text = err.Error()
			}
			if (text == "") != (tt.want == "") || !strings.Contains(text, tt.want) {
				t.Errorf("refuses: %q, want %q", text, tt.want)
			}
		})
	}
	if diff := cmp.Diff(clusterHash("a"), clusterHash("b")); diff == "" {
		t.Error("two clusters have one hash")
	}
}
