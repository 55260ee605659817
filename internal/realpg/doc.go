// Package realpg runs a real PostgreSQL for tests: a process of the test's own,
// with its files in a folder that goes with the test, on a socket and on loopback.
// There is no stand-in: where PostgreSQL is not installed, the test fails.
package realpg
