package audit

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
)

// The known answers of the Certificate Transparency project for RFC 6962: eight
// leaves, the root at every size, audit paths and consistency proofs.
var (
	ctLeaves = []string{
		"", "00", "10", "2021", "3031", "40414243",
		"5051525354555657", "606162636465666768696a6b6c6d6e6f",
	}
	ctRoots = []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	ctInclusion = []struct {
		index, size int64
		path        []string
	}{
		{0, 1, nil},
		{0, 8, []string{
			"96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
			"5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
			"6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
		}},
		{5, 8, []string{
			"bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
			"ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
			"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		}},
		{2, 3, []string{
			"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		}},
		{1, 5, []string{
			"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
			"5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
			"bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
		}},
	}
	ctConsistency = []struct {
		older, newer int64
		proof        []string
	}{
		{1, 1, nil},
		{1, 8, []string{
			"96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
			"5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
			"6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
		}},
		{6, 8, []string{
			"0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
			"ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
			"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		}},
		{2, 5, []string{
			"5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
			"bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
		}},
	}
)

// ctLog builds the eight-leaf log. Its first leaf is empty, which Append
// refuses as no entry can be.
func ctLog(t *testing.T) *Memory {
	t.Helper()
	log := &Memory{}
	for i, leaf := range ctLeaves {
		data, err := hex.DecodeString(leaf)
		if err != nil {
			t.Fatal(err)
		}
		if err := appendLeaf(log, int64(i), LeafHash(data)); err != nil {
			t.Fatal(err)
		}
	}
	return log
}

func hexes(hashes []tlog.Hash) []string {
	var out []string
	for _, h := range hashes {
		out = append(out, hex.EncodeToString(h[:]))
	}
	return out
}

func TestRFC6962Roots(t *testing.T) {
	log := ctLog(t)
	var edge frontier
	for size, want := range ctRoots {
		root, err := Root(log, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(root[:]); got != want {
			t.Errorf("root at size %d = %s, want %s", size, got, want)
		}
		if edge.root() != root {
			t.Errorf("the frontier's root at size %d differs", size)
		}
		if size < len(ctLeaves) {
			data, _ := hex.DecodeString(ctLeaves[size])
			edge.append(LeafHash(data))
		}
	}
}

func TestRFC6962InclusionProofs(t *testing.T) {
	log := ctLog(t)
	for _, want := range ctInclusion {
		proof, err := InclusionProof(log, want.size, want.index)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.path, hexes(proof)); diff != "" {
			t.Errorf("path of %d in %d (-want +got):\n%s", want.index, want.size, diff)
		}
	}
}

func TestRFC6962ConsistencyProofs(t *testing.T) {
	log := ctLog(t)
	for _, want := range ctConsistency {
		proof, err := ConsistencyProof(log, want.older, want.newer)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.proof, hexes(proof)); diff != "" {
			t.Errorf("proof from %d to %d (-want +got):\n%s", want.older, want.newer, diff)
		}
	}
}
