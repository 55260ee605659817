// Package config reads configuration: a YAML file, then the environment, then flags, each
// overriding the one before.
//
// A configuration key that is silently ignored is a hole: `max_stalenes: 10s` would leave a
// service failing open while its operator believes it fails closed. So nothing is ignored. A key
// that the struct does not have, a key given twice, a value of the wrong kind, a second
// document, an alias: each is an error that says file, line, what is wrong and what the nearest
// known key is, and all of them are reported at once.
//
//	file.yaml ─► Decode ─► struct ◄─ Env: HALLPASS_LISTEN_API ◄─ flags: --listen-api
//	                         │
//	                       Fields: every leaf, with its path, its doc tag and how to set it
//
// The shape is a plain struct with `yaml` and `doc` tags. The package checks shape only; what the
// values mean is checked by the package whose Config they become.
package config
