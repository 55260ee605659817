package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/approval/api"
)

// What others wrote reaches a terminal as text only.
func TestSafeLine(t *testing.T) {
	tests := map[string]string{
		"plain, with ünïcode and 漢字": "plain, with ünïcode and 漢字",
		"\x1b[2K\rGET /harmless":     `\x1b[2K\rGET /harmless`,
		"tab\tand\nline":             `tab\tand\nline`,
		"right\u202eto left":         `right\u202eto left`,
		"zero\u200bwidth":            `zero\u200bwidth`,
		"bad\xffbyte":                `bad\ufffdbyte`,
		"\u2028":                     `\u2028`,
		"\x9b31m":                    `\ufffd31m`,
		"\u009b31m":                  `\u009b31m`,
	}
	for in, want := range tests {
		if got := safeLine(in); got != want {
			t.Errorf("safeLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAReasonCannotForgeAField(t *testing.T) {
	w := &tabular{now: time.Now()}
	requestFields(w, request(func(r *api.Request) {
		r.Reason = "x\x1b[1A\x1b[2Kmay  GET /accounts/1\nmay           GET /accounts/1"
	}))
	w.flush()
	out := w.out.String()
	if strings.Contains(out, "\x1b") {
		t.Errorf("an escape reached the terminal: %q", out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "may ") && !strings.Contains(line, "GET /accounts/**") {
			t.Errorf("the reason forged a field: %q", line)
		}
	}
}

// TestEscalationIsShown: who may approve instead, and when, before and after.
func TestEscalationIsShown(t *testing.T) {
	at := time.Date(2026, 3, 4, 11, 15, 0, 0, time.UTC)
	e := api.Escalation{After: api.Duration(15 * time.Minute), Require: []api.Requirement{{Group: "leads", Approvals: 1}}}
	show := func() string {
		w := &tabular{now: at}
		escalationFields(w, &e)
		w.flush()
		return w.out.String()
	}
	if got := show(); !strings.Contains(got, "or, undecided") || !strings.Contains(got, "leads (0 of 1), after 15m") {
		t.Error(got)
	}
	e.At = &at
	if got := show(); !strings.Contains(got, "leads (0 of 1), from ") {
		t.Error(got)
	}
	r := request(func(r *api.Request) { r.Escalation = &e })
	if got := waitsFor(r, ", "); strings.Contains(got, "leads") {
		t.Error(got)
	}
	e.EscalatedAt = &at
	if got := show(); !strings.Contains(got, "or, escalated") || !strings.Contains(got, "leads (0 of 1), since ") {
		t.Error(got)
	}
	if got := waitsFor(r, ", "); !strings.HasSuffix(got, ", or escalated leads (0 of 1)") {
		t.Error(got)
	}
}

// In every form of answer, what others wrote is text, and programs read what was written.
func TestNoFormReachesTheTerminal(t *testing.T) {
	hostile := "a\x1b[2J\u009b31m\u202eb\u200b\U000e0041\x7f\u2028\r\nc"
	value := map[string]string{"reason": hostile}
	for form, encode := range map[string]func(any) ([]byte, error){"json": encodeJSON, "yaml": encodeYAML} {
		for _, v := range []any{value, map[string]string{"reason": "two\nlines, ünïcode 漢字"}} {
			out, err := encode(v)
			if err != nil {
				t.Fatal(err)
			}
			if strings.ContainsFunc(string(out), func(r rune) bool { return unsafeRune(r) && r != '\n' }) {
				t.Errorf("%s: %q", form, out)
			}
			decode, got := json.Unmarshal, map[string]string{}
			if form == "yaml" {
				decode = yaml.Unmarshal
			}
			if err := decode(out, &got); err != nil {
				t.Fatalf("%s: %v", form, err)
			}
			if diff := cmp.Diff(v, any(got)); diff != "" {
				t.Errorf("%s reads back as another text (-want +got):\n%s", form, diff)
			}
		}
	}
	if got := string(safeJSON([]byte(`{"a":"ü\n"}`))); got != `{"a":"ü\n"}` {
		t.Errorf("plain JSON was changed to %s", got)
	}
}

func TestColumns(t *testing.T) {
	w := &tabular{color: true}
	w.row("ID", "STATE", "WHO")
	w.row("1", "pending", "")
	w.row("22", "active", "álice")
	w.line("more")
	w.row("a", "b")
	w.flush()
	want := "ID  STATE    WHO\n1   \x1b[33mpending\x1b[0m\n22  \x1b[32mactive\x1b[0m   álice\nmore\na  b\n"
	if diff := cmp.Diff(want, w.out.String()); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

func TestDistance(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "in 0s", 59 * time.Second: "in 59s", 4 * time.Minute: "in 4m", 4*time.Minute + 5*time.Second: "in 4m5s",
		-time.Hour: "1h0m ago", 72 * time.Hour: "in 3d",
	} {
		if got := distance(d); got != want {
			t.Errorf("distance(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestExitStatus(t *testing.T) {
	problem := func(code api.Code) error { return fmt.Errorf("call: %w", api.NewProblem(code, "", "")) }
	tests := []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitError},
		{usagef("x"), exitUsage},
		{fmt.Errorf("wrapped: %w", deniedf("x")), exitDenied},
		{pendingf("x"), exitPending},
		{unauthenticatedf("x"), exitUnauthenticated},
		{problem(api.CodeDenied), exitDenied},
		{problem(api.CodeUnauthorized), exitUnauthenticated},
		{fmt.Errorf("call: %w", api.ErrUnauthenticated), exitUnauthenticated},
		{problem(api.CodeStale), exitError},
		{problem(api.CodeNoLeader), exitError},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), exitPending},
	}
	for _, tt := range tests {
		if got := exitStatus(tt.err); got != tt.want {
			t.Errorf("exitStatus(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

// TestChangeSaysWhatItTakesAway: a group that is set without a rota has none from then on, and who
// decides on that sees it. An empty line would be no line.
func TestChangeSaysWhatItTakesAway(t *testing.T) {
	w := &tabular{now: time.Now()}
	specFields(w, api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "payments-owners", Members: []string{"bob"}})
	w.line("") // ends the columns
	for _, want := range []string{"nobody takes turns", "substitutes"} {
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("does not say %q:\n%s", want, w.out.String())
		}
	}
}
