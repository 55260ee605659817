package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type vectors struct {
	About string `json:"about"`
	Valid []struct {
		ID    string `json:"id"`
		Scope struct {
			Service     string   `json:"service"`
			Permissions []string `json:"permissions"`
			Subject     string   `json:"subject"`
			Grant       string   `json:"grant"`
		} `json:"scope"`
	} `json:"valid"`
	Invalid []struct {
		ID  string `json:"id"`
		Why string `json:"why"`
	} `json:"invalid"`
	Noncanonical []struct {
		ID        string `json:"id"`
		Canonical string `json:"canonical"`
		Why       string `json:"why"`
	} `json:"noncanonical"`
	Match []matchVector `json:"match"`
	Text  struct {
		Valid []struct {
			Text      string `json:"text"`
			Canonical string `json:"canonical"`
		} `json:"valid"`
		Invalid []struct {
			Text string `json:"text"`
			Why  string `json:"why"`
		} `json:"invalid"`
	} `json:"text"`
	Contain []struct {
		A        string `json:"a"`
		B        string `json:"b"`
		Covers   bool   `json:"covers"`
		Overlaps bool   `json:"overlaps"`
	} `json:"contain"`
}

type matchVector struct {
	ID       string `json:"id"`
	Method   string `json:"method"`
	Target   string `json:"target"`
	GRPC     bool   `json:"grpc"`
	Decision string `json:"decision"`
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectorsValid(t *testing.T) {
	for _, v := range readVectors(t).Valid {
		id, err := ParseID(v.ID, grants())
		if err != nil {
			t.Errorf("%s", err)
			continue
		}
		checkID(t, v.ID, id)
		got := v
		got.Scope.Service = id.Scope().Service()
		got.Scope.Permissions = id.Scope().Texts()
		got.Scope.Subject = id.Subject().String()
		got.Scope.Grant = id.GrantID()
		if diff := cmp.Diff(v, got); diff != "" {
			t.Errorf("%s (-vector +got):\n%s", v.ID, diff)
		}
	}
}

func TestVectorsInvalid(t *testing.T) {
	for _, v := range readVectors(t).Invalid {
		if id, err := ParseID(v.ID, grants()); !errors.Is(err, ErrID) || !id.IsZero() {
			t.Errorf("ParseID(%q) = %v, %v; it is invalid: %s", v.ID, id, err, v.Why)
		}
		if _, err := refParse(v.ID); err == nil {
			t.Errorf("the second reading takes %q; it is invalid: %s", v.ID, v.Why)
		}
	}
}

func TestVectorsNoncanonical(t *testing.T) {
	for _, v := range readVectors(t).Noncanonical {
		_, err := ParseID(v.ID, grants())
		if !errors.Is(err, ErrID) || !strings.Contains(err.Error(), "not canonical") {
			t.Errorf("ParseID(%q) = %v; it is not canonical: %s", v.ID, err, v.Why)
		}
		if _, err := ParseID(v.Canonical, grants()); err != nil {
			t.Errorf("%s", err)
		}
	}
}

func TestVectorsMatch(t *testing.T) {
	for _, v := range readVectors(t).Match {
		if got := decide(t, v); got != v.Decision {
			t.Errorf("%s %q (gRPC: %t) with %s: %s, not %s", v.Method, v.Target, v.GRPC, v.ID, got, v.Decision)
		}
	}
}

// decide is what a proxy does with one request.
func decide(t *testing.T, v matchVector) string {
	t.Helper()
	id, err := ParseID(v.ID, grants())
	if err != nil {
		t.Fatal(err)
	}
	path, err := ParsePath(v.Target, PathOptions{})
	if err != nil {
		if !errors.Is(err, ErrAmbiguousPath) || !path.IsZero() {
			t.Errorf("ParsePath(%q) = %v, %v", v.Target, path, err)
		}
		return "refuse"
	}
	m := id.Scope().Matcher()
	match := m.HTTP
	if v.GRPC {
		match = m.GRPC
	}
	if _, ok := match(v.Method, &path); ok {
		return "allow"
	}
	return "deny"
}

func TestVectorsText(t *testing.T) {
	text := readVectors(t).Text
	for _, v := range text.Valid {
		p, err := ParsePermission(v.Text)
		if err != nil {
			t.Errorf("%s", err)
			continue
		}
		checkPermission(t, p)
		if p.String() != v.Canonical {
			t.Errorf("ParsePermission(%q) = %q, not %q", v.Text, p, v.Canonical)
		}
	}
	for _, v := range text.Invalid {
		if p, err := ParsePermission(v.Text); !errors.Is(err, ErrPermission) || !p.IsZero() {
			t.Errorf("ParsePermission(%q) = %q, %v; it is invalid: %s", v.Text, p, err, v.Why)
		}
	}
}

func TestVectorsContain(t *testing.T) {
	for _, v := range readVectors(t).Contain {
		a, b := mustPermission(t, v.A), mustPermission(t, v.B)
		if got := a.Covers(b); got != v.Covers {
			t.Errorf("%q covers %q: %t", a, b, got)
		}
		if a.Overlaps(b) != v.Overlaps || b.Overlaps(a) != v.Overlaps {
			t.Errorf("%q overlaps %q: not %t", a, b, v.Overlaps)
		}
	}
}

// TestVectorsAreMany keeps the published file from shrinking.
func TestVectorsAreMany(t *testing.T) {
	v := readVectors(t)
	got := []int{len(v.Valid), len(v.Invalid), len(v.Noncanonical), len(v.Match), len(v.Text.Valid), len(v.Text.Invalid), len(v.Contain)}
	for i, least := range []int{79, 167, 19, 143, 27, 78, 35} {
		if got[i] < least {
			t.Errorf("section %d of testdata/vectors.json has %d vectors, it had %d", i, got[i], least)
		}
	}
}
