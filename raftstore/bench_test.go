package raftstore

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// BenchmarkPropose is the time per command of clients that each wait for their own.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("w%d", clients), func(b *testing.B) {
			c := startCluster(b, func(_ string, cfg *Config) { cfg.Timing = Timing{} })
			leader := c.leader()
			var n atomic.Int64
			b.SetParallelism(clients) // times GOMAXPROCS
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := leader.Propose(b.Context(), fmt.Appendf(nil, "set k%d v", n.Add(1)%1000)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkLinearize(b *testing.B) {
	c := startCluster(b, func(_ string, cfg *Config) { cfg.Timing = Timing{} })
	leader := c.leader()
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := leader.Linearize(b.Context()); err != nil {
				b.Error(err)
			}
		}
	})
}
