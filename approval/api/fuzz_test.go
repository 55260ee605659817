package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

// What is accepted has one reading: written out again it is accepted again, and
// says the same.
func FuzzUnmarshalStrict(f *testing.F) {
	for _, seed := range []string{
		`{"service":"payments","permissions":["GET /a"],"dry_run":true}`, `{"a":1,"a":2}`, `{"A":1}`, `[[[]]]`,
		`{"a":{"b":[1,{"c":null}]}}`, "{\"a\":\"\xff\"}", `{"\u0061":1,"a":2}`, `{"a":1}{}`, `{"a":1e400}`, ` 1 `, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second any
		if unmarshalStrict(data, &first) != nil {
			return
		}
		again, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("%q was read as what cannot be written: %v", data, err)
		}
		if err := unmarshalStrict(again, &second); err != nil {
			t.Fatalf("%q was read, %q is not: %v", data, again, err)
		}
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("%q reads as %v, then as %v", data, first, second)
		}
	})
}

// Every event that is written is read as it was, whatever the stream is cut
// into before and after.
func FuzzReadSSE(f *testing.F) {
	f.Add("feed", `{"epoch":1}`, "junk: x\n")
	f.Add("change", `"\u2028"`, ": alive\n\n")
	f.Add("x", `0`, "\r\ndata\n")
	f.Fuzz(func(t *testing.T, name, value, noise string) {
		data, err := json.Marshal(value)
		if err != nil || strings.ContainsAny(name, "\r\n") || strings.TrimSpace(name) != name {
			return
		}
		stream := noise + "\n\n" + fmt.Sprintf("id: 7\nevent: %s\ndata: %s\n\n", name, data) + noise
		found := false
		err = readSSE(strings.NewReader(stream), func() {}, func(e sseEvent) error {
			found = found || e.name == name && e.id == "7" && bytes.Equal(e.data, data)
			return nil
		})
		if !found || err == nil || err == io.EOF { //nolint:errorlint // a stream never ends well
			t.Fatalf("%q: %v", stream, err)
		}
	})
}
