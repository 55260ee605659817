// Package console is the web console: the pages on which people see what is
// asked for, decide, and take access back.
//
//	browser ─http, loopback─► Console ─API─► the cluster (as the person, over mutual TLS)
//	                             │
//	                             └─Sessions─► whose browser is this?
//
// # Duty
//
// A [Console] is an http.Handler that renders pages from what the cluster's API
// tells, and turns forms into calls of it. It holds no right of its own, knows
// no rule and decides nothing: each session brings an [API] that acts as its
// person, and what a page says about "you may" is a courtesy. The cluster
// decides when it applies the command. The nodes know nothing of consoles.
//
// Every page works without JavaScript: forms post and are redirected. The one
// script counts down, and tells of what is new without moving what is there.
//
// # Trust boundary
//
// Whoever controls the browser's session acts as the person. So the attacker is
// any page that the same browser has open, any program or user on the same
// machine, whoever reads a link, and whoever writes a text that is shown: a
// requester's reason is hostile until escaped.
//
// Sessions come from [Sessions], which is the seam for more ways to sign in.
// [Local] is the one for `hallpass console`: a one-time link, exchanged by a
// POST for a cookie, on a host name that nobody else can guess.
//
// # What it refuses
//
// Calls under any name but its own (a name that an attacker points at loopback
// is not it), changes that come from another origin or without the session's
// token, pages in frames, bodies over 64 KiB, fields that are there twice, paths
// that two routers could read in two ways. A decision carries the hash of what
// was on the screen; when the request has changed, nothing is decided and the
// page shows what it says now.
package console
