package audit_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/internal/near"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 250e6, time.UTC)

func sample() audit.Entry {
	return audit.Entry{
		Index: 7, Time: noon, Kind: "request.create",
		Actor: "spiffe://acme.test/user/alice", Node: "n1",
		Object:    "01939d2e-0000-7000-8000-000000000001",
		CommandID: "01939d2e-0000-7000-8000-000000000002",
		Details:   json.RawMessage(`{"service":"payments","duration_ms":1800000}`),
	}
}

const sampleBody = `{"actor":"spiffe://acme.test/user/alice","command":"01939d2e-0000-7000-8000-000000000002",` +
	`"details":{"duration_ms":1800000,"service":"payments"},"index":7,"kind":"request.create","node":"n1",` +
	`"object":"01939d2e-0000-7000-8000-000000000001","time":"2026-11-23T12:00:00.250Z"}`

func TestEntryGolden(t *testing.T) {
	body, err := sample().Canonical()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sampleBody, string(body)); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	back, err := audit.ParseEntry(body)
	if err != nil {
		t.Fatal(err)
	}
	want := sample()
	want.Details = json.RawMessage(`{"duration_ms":1800000,"service":"payments"}`)
	if diff := cmp.Diff(want, back); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
}

// The entry that docs/audit.md shows is one.
func TestEntryOnThePage(t *testing.T) {
	page, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```json\n")
	body, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		t.Fatal("the page shows no entry")
	}
	if diff := cmp.Diff(sampleBody, body); diff != "" {
		t.Errorf("the page's entry (-want +got):\n%s", diff)
	}
}

func TestEntryDetailsAreMadeCanonical(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"none", ``, `{}`},
		{"empty", `{}`, `{}`},
		{"white space goes", "{ \"a\" :\t[ 1 , 2 ]\n}", `{"a":[1,2]}`},
		{"members are sorted, at every depth", `{"b":{"z":1,"y":2},"a":[]}`, `{"a":[],"b":{"y":2,"z":1}}`},
		{"by UTF-16 unit, as RFC 8785 has it", `{"\uFB33":1,"\uD83D\uDE00":2,"é":3}`, "{\"é\":3,\"\U0001F600\":2,\"\uFB33\":1}"},
		{"escapes become characters", `{"a":"\u0041\/\u00e9\u003c\u2028"}`, "{\"a\":\"A/é<\u2028\"}"},
		{"but for what must be escaped", `{"a":"\u0000\u0008\u0009\u000a\u000c\u000d\u001f\u0022\u005c\u007f"}`, `{"a":"\u0000\b\t\n\f\r\u001f\"\\` + "\x7f" + `"}`},
		{"literals and integers stay", `{"a":[true,false,null,0,-1,9007199254740991]}`, `{"a":[true,false,null,0,-1,9007199254740991]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := sample()
			e.Details = json.RawMessage(c.in)
			body, err := e.Canonical()
			if err != nil {
				t.Fatal(err)
			}
			back, err := audit.ParseEntry(body)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(back.Details); got != c.want {
				t.Errorf("details = %s, want %s", got, c.want)
			}
		})
	}
}

func TestEntryRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*audit.Entry)
		want string
	}{
		{"no kind", func(e *audit.Entry) { e.Kind = "" }, "kind"},
		{"a kind in capitals", func(e *audit.Entry) { e.Kind = "Request" }, "kind"},
		{"a kind that ends early", func(e *audit.Entry) { e.Kind = "request." }, "kind"},
		{"a kind with an empty word", func(e *audit.Entry) { e.Kind = "a..b" }, "kind"},
		{"a time finer than a millisecond", func(e *audit.Entry) { e.Time = e.Time.Add(1) }, "millisecond"},
		{"a time before everything", func(e *audit.Entry) { e.Time = time.Time{} }, "time"},
		{"an index beyond any log", func(e *audit.Entry) { e.Index = audit.MaxSize }, "index"},
		{"an actor that is not UTF-8", func(e *audit.Entry) { e.Actor = "\xff" }, "UTF-8"},
		{"an endless object", func(e *audit.Entry) { e.Object = strings.Repeat("a", 8193) }, "object"},
		{"details that are a list", details(`[]`), "object"},
		{"details that are nothing", details(` `), "object"},
		{"a fraction", details(`{"a":1.5}`), "53 bits"},
		{"an exponent", details(`{"a":1e3}`), "53 bits"},
		{"minus zero", details(`{"a":-0}`), "53 bits"},
		{"a leading zero", details(`{"a":01}`), "53 bits"},
		{"more than 53 bits", details(`{"a":9007199254740992}`), "53 bits"},
		{"one name twice", details(`{"a":1,"a":2}`), "twice"},
		{"one name twice, spelt differently", details(`{"a":1,"\u0061":2}`), "twice"},
		{"a lone high surrogate", details(`{"a":"\ud800"}`), "surrogate"},
		{"a lone low surrogate", details(`{"a":"\udc00\ud800"}`), "surrogate"},
		{"a surrogate and no other", details(`{"a":"\ud800\u0041"}`), "surrogate"},
		{"invalid UTF-8", details("{\"a\":\"\xc3\"}"), "UTF-8"},
		{"a raw control byte", details("{\"a\":\"\n\"}"), "control"},
		{"an unknown escape", details(`{"a":"\x41"}`), "escape"},
		{"a broken escape", details(`{"a":"\u00zz"}`), "escape"},
		{"two values", details(`{}{}`), "after the value"},
		{"no end", details(`{"a":1`), "without end"},
		{"a string without end", details(`{"a":"`), "without end"},
		{"a dangling backslash", details(`{"a":"\`), "without end"},
		{"an array without end", details(`{"a":[1`), "without end"},
		{"a trailing comma", details(`{"a":1,}`), "name"},
		{"no colon", details(`{"a" 1}`), "value"},
		{"no value", details(`{"a":}`), "no value"},
		{"a bottomless well", details(`{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`), "deep"},
		{"too much", details(`{"a":"` + strings.Repeat("a", audit.MaxBody) + `"}`), "bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := sample()
			c.edit(&e)
			_, err := e.Canonical()
			if !errors.Is(err, audit.ErrEntry) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Canonical() error = %v, want ErrEntry about %q", err, c.want)
			}
		})
	}
}

func details(text string) func(*audit.Entry) {
	return func(e *audit.Entry) { e.Details = json.RawMessage(text) }
}

// One entry has one spelling: each of these says the same as the golden body
// to some parser.
func TestParseEntryRefusesOtherSpellings(t *testing.T) {
	swap := func(old, new string) string {
		if strings.Count(sampleBody, old) != 1 {
			t.Fatalf("%q is not once in the body", old)
		}
		return strings.Replace(sampleBody, old, new, 1)
	}
	for name, body := range map[string]string{
		"nothing":                 "",
		"null":                    "null",
		"an empty object":         "{}",
		"a line end":              sampleBody + "\n",
		"a carriage return":       sampleBody + "\r",
		"leading space":           " " + sampleBody,
		"space inside":            swap(`"index":7`, `"index": 7`),
		"an escaped letter":       swap("alice", `\u0061lice`),
		"an escaped slash":        swap("user/alice", `user\/alice`),
		"another order":           swap(`"index":7,"kind":"request.create"`, `"kind":"request.create","index":7`),
		"details in other order":  swap(`"duration_ms":1800000,"service":"payments"`, `"service":"payments","duration_ms":1800000`),
		"a member twice":          swap(`"index":7`, `"index":7,"index":7`),
		"a member twice, differs": swap(`"index":7`, `"index":6,"index":7`),
		"a member in capitals":    swap(`"index":7`, `"INDEX":7`),
		"another member":          swap(`"index":7`, `"index":7,"ja":1`),
		"no actor":                swap(`"actor":"spiffe://acme.test/user/alice",`, ``),
		"no details":              swap(`"details":{"duration_ms":1800000,"service":"payments"},`, ``),
		"null details":            swap(`{"duration_ms":1800000,"service":"payments"}`, `null`),
		"a float index":           swap(`"index":7`, `"index":7.0`),
		"a negative index":        swap(`"index":7`, `"index":-7`),
		"an index as text":        swap(`"index":7`, `"index":"7"`),
		"a time zone":             swap(`12:00:00.250Z`, `13:00:00.250+01:00`),
		"finer time":              swap(`00.250Z`, `00.2500Z`),
		"coarser time":            swap(`00.250Z`, `00.25Z`),
		"a comma in the time":     swap(`00.250Z`, `00,250Z`),
		"a byte order mark":       "\ufeff" + sampleBody,
		"something after":         sampleBody + "{}",
	} {
		t.Run(name, func(t *testing.T) {
			if e, err := audit.ParseEntry([]byte(body)); !errors.Is(err, audit.ErrEntry) {
				t.Errorf("ParseEntry = %+v, %v; want ErrEntry", e, err)
			}
		})
	}
	if _, err := audit.ParseEntry(make([]byte, audit.MaxBody+1)); !errors.Is(err, audit.ErrEntry) {
		t.Errorf("an endless body: %v, want ErrEntry", err)
	}
}

func TestEntryEveryByte(t *testing.T) {
	for b := range 256 {
		for _, text := range []string{string([]byte{byte(b)}), string(rune(b))} {
			e := sample()
			e.Object = text
			body, err := e.Canonical()
			if !utf8.ValidString(text) {
				if !errors.Is(err, audit.ErrEntry) {
					t.Errorf("byte %#x: error %v, want ErrEntry", b, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%q: %v", text, err)
				continue
			}
			if back, err := audit.ParseEntry(body); err != nil || back.Object != text {
				t.Errorf("%q came back as %q, %v", text, back.Object, err)
			}
			if strings.ContainsAny(string(body), "\n\r") {
				t.Errorf("%q breaks the line", text)
			}
		}
	}
}

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := audit.Entry{
			Index:     rapid.Uint64Range(0, audit.MaxSize-1).Draw(t, "index"),
			Time:      time.UnixMilli(rapid.Int64Range(0, 253402300799999).Draw(t, "time")).UTC(),
			Kind:      rapid.StringMatching(`[a-z]{1,8}(\.[a-z_]{1,8}){0,2}`).Draw(t, "kind"),
			Actor:     rapid.String().Draw(t, "actor"),
			Node:      rapid.String().Draw(t, "node"),
			Object:    rapid.String().Draw(t, "object"),
			CommandID: rapid.String().Draw(t, "command"),
		}
		raw, err := json.Marshal(rapid.MapOf(rapid.String(), rapid.Int64Range(-1<<53+1, 1<<53-1)).Draw(t, "details"))
		if err != nil {
			t.Fatal(err)
		}
		e.Details = raw
		body, err := e.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		back, err := audit.ParseEntry(body)
		if err != nil {
			t.Fatal(err)
		}
		var want, got map[string]int64
		if err := errors.Join(json.Unmarshal(e.Details, &want), json.Unmarshal(back.Details, &got)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("details (-want +got):\n%s", diff)
		}
		e.Details, back.Details = nil, nil
		if diff := cmp.Diff(e, back); diff != "" {
			t.Fatalf("entry (-want +got):\n%s", diff)
		}
	})
}

// FuzzParseEntry: what is read is written the same, and all else is ErrEntry.
func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(sampleBody))
	f.Add([]byte(strings.Replace(sampleBody, "alice", `\u0061lice`, 1)))
	f.Add([]byte(strings.Replace(sampleBody, `"service":"payments"`, `"s":[1,{"a":null},"\ud83d\ude00"]`, 1)))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := audit.ParseEntry(body)
		if err != nil {
			if !errors.Is(err, audit.ErrEntry) {
				t.Fatalf("error %v is not ErrEntry", err)
			}
			return
		}
		again, err := e.Canonical()
		if err != nil || string(again) != string(body) {
			t.Fatalf("two spellings of one entry:\n%s\n%s\n%v", body, again, err)
		}
	})
}

// FuzzDetails holds our reader against encoding/json: what we accept means the
// same there, before and after.
func FuzzDetails(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,true,null,"x"]}`, `{"b":1,"a":{"\u00e9":-5}}`, `{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":"\ud83d\ude00"}`, `{"a":1e5}`} {
		f.Add([]byte(seed), uint16(0), byte(' '))
	}
	f.Fuzz(func(t *testing.T, raw []byte, at uint16, b byte) {
		for _, raw := range near.Of(raw, at, b) {
			tryDetails(t, raw)
		}
	})
}

func tryDetails(t *testing.T, raw []byte) {
	t.Helper()
	e := sample()
	e.Details = raw
	body, err := e.Canonical()
	if err != nil {
		return
	}
	back, err := audit.ParseEntry(body)
	if err != nil {
		t.Fatalf("what Canonical wrote is refused: %v\n%s", err, body)
	}
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	var want, got any
	if err := errors.Join(json.Unmarshal(raw, &want), json.Unmarshal(back.Details, &got)); err != nil {
		t.Fatalf("encoding/json refuses what we accept: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("meaning changed (-want +got):\n%s", diff)
	}
}
