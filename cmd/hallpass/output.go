package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

func validOutput(form string) bool { return form == "table" || form == "json" || form == "yaml" }

// print writes value to stdout in the form that -o names. table writes the form for people.
func (a *app) print(value any, table func(w *tabular)) error {
	switch a.output {
	case "json":
		data, err := encodeJSON(value)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(data)
		return err
	case "yaml":
		data, err := encodeYAML(value)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(data)
		return err
	default:
		w := &tabular{color: a.colors(), now: a.now()}
		table(w)
		w.flush()
		_, err := a.stdout.Write(w.out.Bytes())
		return err
	}
}

// colors reports whether stdout may be coloured (no-color.org).
func (a *app) colors() bool {
	return a.env("NO_COLOR") == "" && a.env("TERM") != "dumb" && isTerminal(a.stdout)
}

func encodeJSON(value any) ([]byte, error) {
	doc, err := marshalJSON(value)
	return safeJSON(doc), err
}

func marshalJSON(value any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(value); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// safeJSON is the same JSON for every program, and text for a terminal: what encoding/json leaves
// as it is, such as U+009B, which begins an escape sequence, is written as an escape of JSON's.
func safeJSON(doc []byte) []byte {
	return escaped(doc, func(out []byte, r rune) []byte {
		high, low := utf16.EncodeRune(r)
		return fmt.Appendf(out, "\\u%04x\\u%04x", high, low)
	})
}

// escaped escapes in a JSON document what a terminal might take for more than text. beyond writes
// the escape of a character that has none of four digits.
func escaped(doc []byte, beyond func(out []byte, r rune) []byte) []byte {
	if !bytes.ContainsFunc(doc, unsafeInJSON) {
		return doc
	}
	var out []byte
	for _, r := range string(doc) {
		switch {
		case !unsafeInJSON(r):
			out = utf8.AppendRune(out, r)
		case r > 0xFFFF:
			out = beyond(out, r)
		default:
			out = fmt.Appendf(out, "\\u%04x", r)
		}
	}
	return out
}

// unsafeInJSON is unsafeRune for a document, whose lines end in line breaks.
func unsafeInJSON(r rune) bool { return r >= 0x20 && unsafeRune(r) }

// encodeYAML writes the same document as encodeJSON, with the same names in the same order.
func encodeYAML(value any) ([]byte, error) {
	data, err := marshalJSON(value)
	if err != nil {
		return nil, err
	}
	if bytes.ContainsFunc(data, unsafeInJSON) {
		// JSON is YAML, but for the escapes beyond four digits.
		return escaped(data, func(out []byte, r rune) []byte { return fmt.Appendf(out, "\\U%08x", r) }), nil
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// plain turns the flow style of JSON into block style. The encoder quotes what needs quotes.
func plain(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, child := range n.Content {
		plain(child)
	}
}

// tabular writes columns, "name  value" lines and plain lines, for people.
type tabular struct {
	out   bytes.Buffer
	block [][]string // rows whose columns line up
	color bool
	now   time.Time
}

// row writes one line of columns.
func (w *tabular) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = safeLine(cell)
	}
	w.block = append(w.block, cells)
}

// field writes "name  value", with one line for each value; no value, no line.
func (w *tabular) field(name string, values ...string) {
	for _, value := range values {
		for line := range strings.Lines(value) {
			w.row(name, strings.TrimRight(line, "\n"))
			name = ""
		}
	}
}

// line writes one line as it is, outside all columns, and ends the columns before it.
func (w *tabular) line(format string, args ...any) {
	w.flush()
	fmt.Fprintln(&w.out, safeLine(fmt.Sprintf(format, args...)))
}

// flush lays out the rows so far. Colours come after the widths, which they must not change.
func (w *tabular) flush() {
	var widths []int
	for _, cells := range w.block {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, cells := range w.block {
		// Padding at a line's end would show up in what people copy.
		for len(cells) > 0 && cells[len(cells)-1] == "" {
			cells = cells[:len(cells)-1]
		}
		for i, cell := range cells {
			w.out.WriteString(w.state(cell))
			if i < len(cells)-1 {
				w.out.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		w.out.WriteByte('\n')
	}
	w.block = nil
}

// when writes an instant and how far away it is: "2026-01-02 15:04:05Z (in 4m)".
func (w *tabular) when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z") + " (" + distance(t.Sub(w.now)) + ")"
}

// state colours the few words that people look for. Every other text stays as it is.
func (w *tabular) state(cell string) string {
	if !w.color {
		return cell
	}
	code := 0
	switch cell {
	case "granted", "approved", "active", "applied", "approve", "healthy":
		code = 32
	case "pending", "scheduled", "stale":
		code = 33
	case "denied", "revoked", "returned", "expired", "cancelled", "deny", "blocked":
		code = 31
	default:
		return cell
	}
	return "\x1b[" + strconv.Itoa(code) + "m" + cell + "\x1b[0m"
}

// distance says how far away an instant is, to two units.
func distance(d time.Duration) string {
	if d < 0 {
		return short(-d) + " ago"
	}
	return "in " + short(d)
}

func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Second).String(), "0s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	default:
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
}

// safeLine makes a text fit for one line of a terminal: a requester whose reason holds an escape
// sequence or a right-to-left override could otherwise paint over the scope that is being
// approved, and one with a tab or a line break could add a column or a row.
func safeLine(s string) string {
	if !strings.ContainsFunc(s, unsafeRune) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unsafeRune(r) || r == utf8.RuneError {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// safeText is safeLine for text that may have several lines.
func safeText(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = safeLine(line)
	}
	return strings.Join(lines, "\n")
}

func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
}
