package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzUnmarshalStrict: what is accepted has one reading. Written out again it is
// accepted again, and says the same; and what a struct of ours takes from it, in
// whatever case, is the member of exactly that name.
func FuzzUnmarshalStrict(f *testing.F) {
	for _, seed := range []string{
		`{"service":"payments","permissions":["GET /a"],"dry_run":true}`, `{"a":1,"a":2}`, `{"A":1}`, `[[[]]]`,
		`{"a":{"b":[1,{"c":null}]}}`, "{\"a\":\"\xff\"}", `{"\u0061":1,"a":2}`, `{"a":1}{}`, `{"a":1e400}`, ` 1 `, ``,
	} {
		f.Add([]byte(seed), uint16(0), byte(' '))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			tryStrict(t, data)
		}
	})
}

func tryStrict(t *testing.T, data []byte) {
	t.Helper()
	var first, second any
	if UnmarshalStrict(data, &first) != nil {
		return
	}
	again, err := json.Marshal(first)
	if err != nil {
		t.Fatalf("%q was read as what cannot be written: %v", data, err)
	}
	if err := UnmarshalStrict(again, &second); err != nil {
		t.Fatalf("%q was read, %q is not: %v", data, again, err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Fatalf("%q reads as %v, then as %v", data, first, second)
	}
	members, ok := first.(map[string]any)
	if !ok {
		return
	}
	var ours struct {
		Service any `json:"service"`
	}
	if err := UnmarshalStrict(data, &ours); err != nil || !reflect.DeepEqual(ours.Service, members["service"]) {
		t.Fatalf("%q has the service %v, and %v in our eyes, %v", data, members["service"], ours.Service, err)
	}
}

// FuzzReadSSE: every event that is written is read as it was, whatever stands
// before and after it, and of that what a second reader of event streams finds.
func FuzzReadSSE(f *testing.F) {
	f.Add("feed", `{"epoch":1}`, "junk: x\n", uint16(0), byte(' '))
	f.Add("change", `"\u2028"`, ": alive\n\n", uint16(0), byte(' '))
	f.Add("x", `0`, "\r\ndata\n", uint16(0), byte(' '))
	f.Add("x", `0`, "event: a\nid: 1\ndata: b\ndata: c\n\n", uint16(0), byte(' '))
	f.Fuzz(func(t *testing.T, name, value, noise string, at uint16, b byte) {
		for _, noise := range near.Of(noise, at, b) {
			tryEvents(t, name, value, noise)
		}
	})
}

func tryEvents(t *testing.T, name, value, noise string) {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil || strings.ContainsAny(name, "\r\n") || strings.TrimSpace(name) != name {
		return
	}
	stream := noise + "\n\n" + fmt.Sprintf("id: 7\nevent: %s\ndata: %s\n\n", name, data) + noise
	found := false
	var all []string
	err = readSSE(strings.NewReader(stream), func() {}, func(e sseEvent) error {
		found = found || e.name == name && e.id == "7" && bytes.Equal(e.data, data)
		all = append(all, fmt.Sprintf("%q", []string{e.name, e.id, string(e.data)}))
		return nil
	})
	if !found || err == nil || err == io.EOF { //nolint:errorlint // a stream never ends well
		t.Fatalf("%q: %v", stream, err)
	}
	if want := eventsOf(stream); !slices.Equal(all, want) {
		t.Fatalf("%q is read as %q, want %q", stream, all, want)
	}
}

// eventsOf reads the blocks of a stream that end with an empty line, each by itself.
func eventsOf(stream string) (all []string) {
	var lines []string
	for line := range strings.SplitAfterSeq(stream, "\n") {
		if line == "" {
			continue
		}
		if text := strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"); text != "" {
			lines = append(lines, text)
			continue
		}
		last := map[string]string{}
		var data []string
		for _, line := range lines {
			field, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			if last[field] = value; field == "data" {
				data = append(data, value)
			}
		}
		if len(data) > 0 {
			all = append(all, fmt.Sprintf("%q", []string{last["event"], last["id"], strings.Join(data, "\n")}))
		}
		lines = nil
	}
	return all
}
