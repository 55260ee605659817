package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// ErrPolicy is returned when a policy's YAML is refused. Every such error is a
// [*ParseError].
var ErrPolicy = errors.New("policy refused")

// Mistake is one thing that is wrong in a policy.
type Mistake struct {
	// Line counts from 1; 0 when the mistake has none.
	Line int
	// Rule is the rule's name, or its number ("#2") when it has none; empty
	// outside rules.
	Rule string
	// Text says what is wrong and what would be right.
	Text string
}

func (m Mistake) String() string {
	var b strings.Builder
	if m.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", m.Line)
	}
	if m.Rule != "" {
		fmt.Fprintf(&b, "rule %s: ", m.Rule)
	}
	return b.String() + m.Text
}

// maxMistakes bounds an error that is stored and sent as a command's result.
const maxMistakes = 50

// ParseError lists the mistakes in a policy, by line; at most the first 50.
type ParseError struct {
	Mistakes []Mistake
}

func (e *ParseError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return ErrPolicy.Error() + ": " + strings.Join(lines, "\n")
}

// Unwrap makes errors.Is(err, ErrPolicy) hold.
func (e *ParseError) Unwrap() error { return ErrPolicy }

// reader collects mistakes while it reads a document.
type reader struct {
	version  int                // of the policy
	listed   map[string]service // its services; nil: not said
	slack    Slack              // its channel
	rule     string
	mistakes []Mistake
}

func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	r.mistakes = append(r.mistakes, Mistake{Line: n.Line, Rule: r.rule, Text: fmt.Sprintf(format, args...)})
}

func (r *reader) err() error {
	if len(r.mistakes) == 0 {
		return nil
	}
	return Refused(r.mistakes)
}

// Refused is the [*ParseError] of these mistakes, by line.
func Refused(mistakes []Mistake) error {
	slices.SortStableFunc(mistakes, func(a, b Mistake) int { return a.Line - b.Line })
	if more := len(mistakes) - maxMistakes; more > 0 {
		mistakes = append(mistakes[:maxMistakes:maxMistakes], Mistake{Text: fmt.Sprintf("and %d more mistakes", more)})
	}
	return &ParseError{Mistakes: mistakes}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// document parses the text into the one node of its one document.
func (r *reader) document(text []byte) *yaml.Node {
	top := &yaml.Node{}
	switch {
	case len(text) > MaxSize:
		r.fail(top, "%d bytes: a policy has at most %d", len(text), MaxSize)
		return nil
	case !utf8.Valid(text):
		r.fail(top, "not UTF-8: save the file as UTF-8")
		return nil
	}
	if r.hidden(text); len(r.mistakes) > 0 {
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(top); err != nil {
		r.syntax(err)
		return nil
	}
	var second yaml.Node
	switch err := decoder.Decode(&second); {
	case err == nil:
		r.fail(&second, "a second document: a policy is one")
		return nil
	case !errors.Is(err, io.EOF):
		r.syntax(err)
		return nil
	}
	if r.plain(top); len(r.mistakes) > 0 {
		return nil
	}
	return top.Content[0]
}

// hidden refuses what does not show, in comments too: admins approve a policy by
// reading it, and a text turned around reads as another one.
func (r *reader) hidden(text []byte) {
	line := 1
	for _, c := range string(text) {
		switch {
		case c == '\n':
			line++
		case c != '\r' && grant.HiddenInText(c):
			r.fail(&yaml.Node{Line: line}, "%U, which does not show, or changes how what is around it shows: take it out", c)
		}
	}
}

// syntax records an error of the YAML parser under the line it names.
func (r *reader) syntax(err error) {
	if errors.Is(err, io.EOF) {
		r.fail(&yaml.Node{Line: 1}, "empty: write version: 1 and rules")
		return
	}
	parts := yamlLine.FindStringSubmatch(err.Error())
	if parts == nil {
		r.fail(&yaml.Node{}, "not YAML: %v", err)
		return
	}
	line, _ := strconv.Atoi(parts[1]) // no line: 0, which says so
	r.fail(&yaml.Node{Line: line}, "not YAML: %s", parts[2])
}

// plain refuses what makes a YAML text mean something else to one reader than
// to another, or to a person than to a parser.
func (r *reader) plain(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		r.fail(n, "an alias (*%s): write the value out", n.Value)
		return
	case n.Anchor != "":
		r.fail(n, "an anchor (&%s): write the value out where it is used", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		r.fail(n, "a tag (%s): leave it out", n.Tag)
	}
	for _, child := range n.Content {
		r.plain(child)
	}
}

// fields returns the values of a mapping by key, or nil. Keys other than known
// and repeated ones are mistakes: a misspelt "deny" must not be a rule that
// does not deny.
func (r *reader) fields(n *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s is %s: write keys and values (%s)", what, kindOf(n), strings.Join(known, ", "))
		return nil
	}
	values := make(map[string]*yaml.Node, len(known))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case r.version < 2 && slices.Contains(secondKeys(), key.Value):
			r.fail(key, "%s in a policy of version 1: write version: 2 to use it", key.Value)
		case r.version < 3 && slices.Contains(thirdKeys(), key.Value):
			r.fail(key, "%s in a policy of version %d: write version: 3 to use it", key.Value, r.version)
		case key.Kind != yaml.ScalarNode || !slices.Contains(known, key.Value):
			r.fail(key, "unknown key %q in %s: the keys are %s", key.Value, what, strings.Join(known, ", "))
		case values[key.Value] != nil:
			r.fail(key, "%s twice: keep one", key.Value)
		default:
			values[key.Value] = value
		}
	}
	return values
}

// secondKeys are the keys that version 2 brought.
func secondKeys() []string { return []string{"match", "reason", "services", "tests"} }

// thirdKeys are the keys that version 3 brought.
func thirdKeys() []string {
	return []string{"break_glass", "max_extended", "extended_to", "delegate", "delegable", "description", "owners", "bundles", "step_up", "channels", "escalate", "notify"}
}

// items returns the elements of a non-empty list, or nil.
func (r *reader) items(n *yaml.Node, what, example string) []*yaml.Node {
	switch {
	case n.Kind != yaml.SequenceNode:
		r.fail(n, "%s is %s: write a list, such as %s", what, kindOf(n), example)
	case len(n.Content) == 0:
		r.fail(n, "%s is empty: write at least one, such as %s", what, example)
	case len(n.Content) > maxList:
		r.fail(n, "%s has %d elements: at most %d", what, len(n.Content), maxList)
	default:
		return n.Content
	}
	return nil
}

// text returns a string, or "" and a mistake. Unquoted numbers, booleans and
// nulls are not strings.
func (r *reader) text(n *yaml.Node, what string) string {
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		r.fail(n, "%s is %s: write text, in quotes if need be", what, kindOf(n))
	case n.Value == "":
		r.fail(n, "%s is empty", what)
	case strings.ContainsFunc(n.Value, unicode.IsControl):
		r.fail(n, "%s holds a control character or a line break", what)
	case r.version >= 3 && strings.ContainsFunc(n.Value, grant.HiddenInText):
		// Written as an escape, "\u202e", it is none in the file and one on every
		// screen that the text is read on.
		r.fail(n, "%s holds an escape for a character that does not show, or changes how what is around it shows: take it out", what)
	default:
		return n.Value
	}
	return ""
}

// integer returns a number from 1 to high, or 0 and a mistake. Only plain
// decimal digits are one: 010 is eight to some readers and ten to others.
func (r *reader) integer(n *yaml.Node, what string, high int) int {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || strconv.Itoa(v) != n.Value {
		r.fail(n, "%s is %s: write a whole number from 1 to %d", what, kindOf(n), high)
		return 0
	}
	if v < 1 || v > high {
		r.fail(n, "%s is %d: write a whole number from 1 to %d", what, v, high)
		return 0
	}
	return v
}

// duration returns whole seconds from low to high, or 0 and a mistake.
func (r *reader) duration(n *yaml.Node, what string, low, high time.Duration) time.Duration {
	d, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil:
		r.fail(n, "%s is %s: write hours, minutes and seconds, such as 8h, 30m or 1h30m", what, kindOf(n))
	case d%time.Second != 0:
		r.fail(n, "%s is %s: write whole seconds", what, n.Value)
	case d < low:
		r.fail(n, "%s is %s: write at least %s", what, n.Value, span(low))
	case d > high:
		r.fail(n, "%s is %s: write at most %s", what, n.Value, span(high))
	default:
		return d
	}
	return 0
}

// kindOf says in words what a node is, for "… is X: write Y".
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "empty"
		}
		return strconv.Quote(n.Value)
	default:
		return "something else"
	}
}
