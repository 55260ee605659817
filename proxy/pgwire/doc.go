// Package pgwire reads and writes as much of PostgreSQL's frontend/backend protocol (version 3) as a proxy between
// a client and a server needs. It knows nothing of grants: who may open what is its caller's to decide.
//
// # Duty
//
//   - [ReadFirst]: what a client sends before anything else, read byte by byte and no further, so that nothing sent ahead in
//     the clear can end up inside TLS (CVE-2021-23214). One reading: a parameter that is there twice, under two
//     spellings or not as it should be is an error, not the last one's.
//
//   - [Login]: the other side of it, at a server: TLS, then one way of authentication that the caller has pinned. A
//     server that asks for the password in the clear, or for none at all, is not given what it asks for.
//
//   - [Relay]: messages of one direction, by their frames. It shows its caller the beginning of those that it asks for, before
//     a byte of them has gone on, and holds one buffer whatever the size of a message.
//
//   - [Keys]: the cancel keys of sessions, made here, since a server's own would let a client cancel what it pleases
//     as long as the key lives.
//
//   - [Fingerprint]: what is left of a statement without its values.
//
//     client ─► ReadFirst ─► (caller: may they?) ─► Login ─► server
//     ◄──────────── Relay, one for each direction ───────────►
//
// # Trust boundary
//
// Clients are hostile. A server is believed to be the one that the caller has dialled once Login has returned, and what it
// sends is passed on; but it cannot make this package hold more than a buffer, or wait beyond a deadline that the caller
// sets.
//
// # What it does not do
//
// It does not read SQL to decide anything. Whoever can send SQL can say it in more ways than any filter knows: what a session
// may do is what its role may do in the database. Messages are encoded by jackc/pgx's pgproto3; what is decoded here by hand
// is that which pgproto3 reads too leniently (start-up parameters go into a map there) or only as a whole.
package pgwire
