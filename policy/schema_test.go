package policy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

func readSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(policy.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// follows validates a policy by the schema, as an editor does: times are text.
func follows(s *jsonschema.Schema, text string) error {
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		return err
	}
	timesAsText(&n)
	var doc any
	if err := n.Decode(&doc); err != nil {
		return err
	}
	return s.Validate(doc)
}

func timesAsText(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, child := range n.Content {
		timesAsText(child)
	}
}

// TestExamples: what is shipped passes its own tests, and editors say nothing.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/policy*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%q, %v", files, err)
	}
	schema := readSchema(t)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := condition.Check(t.Context(), text)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if n := len(s.Policy().Tests()); n < 7 {
			t.Errorf("%s: %d tests", file, n)
		}
		if err := follows(schema, string(text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestSchemaTakesWhatParseTakes holds the schema against every policy that these
// tests decide by, and against those that are refused for what a schema can say: it
// does not see that keys were merged.
func TestSchemaTakesWhatParseTakes(t *testing.T) {
	schema := readSchema(t)
	files, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		text, _ := sections(t, file, "policy.yaml", "cases")
		if err := follows(schema, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	archive, err := txtar.ParseFile("testdata/refused.txtar")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, f := range archive.Files {
		text := string(f.Data)
		if err := follows(schema, text); err != nil {
			refused++
		} else if f.Name != "a merge" && (strings.Contains(text, "unknown key") ||
			strings.Contains(text, "may not be left out") || strings.Contains(text, "keep one of require")) {
			t.Errorf("%s: the schema takes it", f.Name)
		}
	}
	if refused < len(archive.Files)/2 {
		t.Errorf("the schema refuses %d of the %d policies that are refused", refused, len(archive.Files))
	}
}

// TestSchemaNamesTheKeys: a key that the one knows and the other does not would be
// underlined in an editor, or refused where none was.
func TestSchemaNamesTheKeys(t *testing.T) {
	schema := readSchema(t)
	known := func(s *jsonschema.Schema) (keys []string) {
		for key := range s.Properties {
			keys = append(keys, key)
		}
		return keys
	}
	rule := schema.Properties["rules"].Items2020.Ref
	test := schema.Properties["tests"].Items2020.Ref
	for _, c := range []struct {
		what   string
		schema *jsonschema.Schema
		text   string
	}{
		{"the policy", schema, "version: 3\nx: 1\nrules: []\n"},
		{"a service", schema.Properties["services"].Items2020.Ref, "version: 3\nrules: []\nservices: [{x: 1}]\n"},
		{"a bundle", schema.Properties["services"].Items2020.Ref.Properties["bundles"].Items2020.Ref, "version: 3\nrules: []\nservices: [{name: s, bundles: [{x: 1}]}]\n"},
		{"a rule", rule, "version: 3\nrules: [{x: 1}]\n"},
		{"reason", rule.Properties["reason"].Ref, "version: 3\nrules: [{reason: {x: 1}}]\n"},
		{"break_glass", rule.Properties["break_glass"].Ref, "version: 3\nrules: [{require: [], break_glass: {x: 1}}]\n"},
		{"delegate", rule.Properties["delegate"].Ref, "version: 3\nrules: [{auto: true, delegate: {x: 1}}]\n"},
		{"escalate", rule.Properties["escalate"].Ref, "version: 3\nrules: [{require: [], escalate: {x: 1}}]\n"},
		{"a test", test, "version: 3\nrules: []\ntests: [{x: 1}]\n"},
		{"expect", test.Properties["expect"], "version: 3\nrules: []\ntests: [{expect: {x: 1}}]\n"},
	} {
		_, err := policy.Parse([]byte(c.text))
		if err == nil {
			t.Fatalf("%s: not refused", c.what)
		}
		_, list, found := strings.Cut(err.Error(), "unknown key \"x\" in "+c.what+": the keys are ")
		if !found {
			t.Fatalf("%s: %v", c.what, err)
		}
		list, _, _ = strings.Cut(list, "\n")
		have := strings.Split(list, ", ")
		want := known(c.schema)
		for _, key := range have {
			if c.schema.Properties[key] == nil {
				t.Errorf("%s: the schema does not know %s", c.what, key)
			}
		}
		if len(have) != len(want) {
			t.Errorf("%s: the keys are %q, and in the schema %q", c.what, have, want)
		}
	}
}
