// Command hallpass is the whole of Hallpass in one binary: a control node, the proxy beside a
// service, and what requesters, approvers, operators and auditors type.
//
// It is thin. Flags, configuration files, environment and signals are read here and become the
// Configs of the packages that do the work; nothing here decides who gets in.
//
//	hallpass server | proxy | connect | mcp    long-running: until SIGINT or SIGTERM
//	hallpass request | review | grant | …      one call to the API over mTLS, then done
//	hallpass ca | cert | audit verify | …      offline: files in, words out
//
// Data goes to stdout in the form that -o names, everything else to stderr. The exit status is
// the interface of scripts: 0 done, 1 error, 2 wrong usage, 3 denied, 4 pending or timed out,
// 5 not authenticated. A call's settings come from flags, then HALLPASS_* variables, then the
// configuration file; a key that nobody knows is an error that names the nearest one that is.
//
// Text that others wrote (reasons, comments, names) is escaped before it reaches a terminal: a
// reason that moves the cursor could otherwise show an approver another request than the one
// that is signed.
package main
