// Command bench measures Hallpass next to the programs it would stand in for
// and prints one "name value unit" a line.
//
// It never judges: a bound belongs in docs/benchmarks.md, beside the figure
// that a run printed, and a slow machine fails nothing. What it does promise is
// that a ratio compares like with like:
//
//   - ours and theirs do the same work in the same run: the same client, the
//     same upstream, the same certificates, a client certificate verified and
//     an access log written on both sides;
//   - the two take turns, at least five times each, and the median of the
//     pairwise ratios is printed, so that a machine whose speed drifts drags
//     both along;
//   - CPU is what the server's own processes used (user and system time, from
//     /proc), never the client's;
//   - a peer that is not installed prints "missing", never a number;
//   - peers are set up as their makers would for that work: kept connections to the
//     upstream, one worker where more would only get in each other's way.
//
// Peers come from Debian's packages and from Go modules that bench/peers pins
// (bench/setup gets them). On stderr it says which versions it met.
package main
