package policy

import _ "embed" // the schema is a file that editors can be pointed at, too

//go:embed schema.json
var schema string

// Schema is the JSON Schema (draft 2020-12) of policy files, for editors. It knows
// the keys and their forms; what Parse refuses beyond that, only Parse knows.
func Schema() []byte { return []byte(schema) }
