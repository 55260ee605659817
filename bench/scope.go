package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/hallpass/hallpass/grant"
)

// benchScope measures what every proxied request pays for its scope check: the
// target read once and matched against a certificate's permissions.
func benchScope(_ context.Context, r *report) error {
	scope, err := grant.ParseScope("payments", []string{"GET,HEAD /accounts/**", "POST /refunds/*"})
	if err != nil {
		return err
	}
	matcher := scope.Matcher()
	const target = "/accounts/42/history?limit=10"
	var failed error
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			path, err := grant.ParsePath(target, grant.PathOptions{})
			if err != nil {
				failed = err
				return
			}
			if _, ok := matcher.HTTP("GET", &path); !ok {
				failed = fmt.Errorf("%s does not allow GET %s", scope, target)
				return
			}
		}
	})
	if failed != nil {
		return failed
	}
	r.figure("scope.allows.ns", float64(result.T.Nanoseconds())/float64(result.N), "ns")
	r.figure("scope.allows.allocs", float64(result.AllocsPerOp()), "allocs")
	return nil
}
