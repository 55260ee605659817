package signer

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// instruments are the signer's metrics.
type instruments struct {
	signatures, installs, failures metric.Int64Counter
	gauges                         metric.Registration
}

func (s *Signer) instruments(p metric.MeterProvider) (*instruments, error) {
	m := p.Meter("github.com/hallpass/hallpass/signer")
	i := new(instruments)
	var err error
	for _, c := range []struct {
		into       *metric.Int64Counter
		name, what string
	}{
		{&i.signatures, "hallpass.signer.renewals", "times that a node's certificates were signed"},
		{&i.installs, "hallpass.signer.installs", "times that the cluster was given a node's certificates"},
		{&i.failures, "hallpass.signer.failures", "times that neither could be done, by which"},
	} {
		if *c.into, err = m.Int64Counter(c.name, metric.WithDescription(c.what)); err != nil {
			return nil, err
		}
	}
	remaining, err := m.Float64ObservableGauge("hallpass.signer.issuers.remaining", metric.WithUnit("s"),
		metric.WithDescription("how long what a node has is still good, by node"))
	if err != nil {
		return nil, err
	}
	kms, err := m.Int64ObservableGauge("hallpass.signer.kms.up", metric.WithDescription("1 while the KMS gave its keys when it was last asked"))
	if err != nil {
		return nil, err
	}
	i.gauges, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := s.statusNow()
		up := int64(0)
		if st.done && st.kms == nil {
			up = 1
		}
		o.ObserveInt64(kms, up)
		for id, f := range st.nodes {
			if !f.notAfter.IsZero() {
				o.ObserveFloat64(remaining, f.notAfter.Sub(s.now()).Seconds(), metric.WithAttributes(attribute.String("node", id)))
			}
		}
		return nil
	}, remaining, kms)
	return i, err
}

func (i *instruments) close() { _ = i.gauges.Unregister() }

func (i *instruments) signed(ctx context.Context)    { i.signatures.Add(ctx, 1) }
func (i *instruments) installed(ctx context.Context) { i.installs.Add(ctx, 1) }

func (i *instruments) failed(ctx context.Context, what string) {
	i.failures.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", what)))
}
