// Command mutants takes the guard of each invariant away and demands that the test named after
// the invariant fails.
//
// A test that has never failed proves nothing. For every file in catalogue/ the runner checks that
// the guard's text occurs exactly once in the source file it names, that the named test passes
// as the code stands, and then runs that test alone on the code without the guard. The code on
// disk is never touched, and no build tag that could ship weakens it: the changed file reaches
// the compiler by `go test -overlay`.
//
//	catalogue/05-one-person.txtar ─► overlay.json ─► go test -overlay -run '^TestInvariant05_…$'
//	                                                    ├─ test fails             killed
//	                                                    ├─ test passes            survived
//	                                                    └─ does not compile, no such test,
//	                                                       runs too long          survived, with why
//
// A catalogue file is a txtar: a header of "key: value" lines (invariant or trap, package, test,
// file) and exactly two sections, guard and without. A trap is nobody's invariant by itself, but
// several fall with its guard; its test need not be named after it. Run it from anywhere in the module:
//
//	go run ./internal/mutants             every mutant
//	go run ./internal/mutants -only 5     those of invariant 5
//	go run ./internal/mutants -name raft  those whose file's name matches
//	go run ./internal/mutants -v          with the failing test's own words
//
// # Planted bugs
//
// With -fuzz it asks the same of the fuzz targets: planted/ holds a bug for each, in the same
// format (fuzz in the place of invariant or trap), and the target, which starts from its seeds
// alone and runs outside the source tree, must find it within a minute. A bug that a seed finds
// proves nothing of the fuzzing and counts as not found; so does a target without a bug, or one
// whose comment does not say what it holds against what it reads. With -list it prints the targets.
//
// It ends with `mutants: N killed, M survived`, and with status 1 when any survived or any of the
// invariants has no mutant; with -fuzz with `planted: N found, M not`.
package main
