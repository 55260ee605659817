package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/proxy"
)

func (a *app) newProxyDoctor() *cobra.Command {
	var file, cert string
	var q proxy.Question
	cmd := &cobra.Command{
		Use:   "doctor --config FILE --cert FILE [--request 'GET /path']",
		Short: "Say offline, step by step, why a proxy would admit a certificate or refuse it",
		Long: `Say, step by step, why a proxy with this configuration would admit a certificate or
refuse it: chain, key usage, name, service, time, revocation, and with --request what
it would make of a request. It is the proxy's own code that decides, on the files that
the proxy reads; nobody is asked, nothing is changed, and no key of the client's is
needed. Run it as the proxy's user.

The exit status is 0 when it would be admitted, 3 when it would be refused, and 1 when
the proxy itself would not start.`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			if file == "" || cert == "" {
				return usagef("give --config and --cert")
			}
			s, err := loadProxy(file)
			if err != nil {
				return err
			}
			if q.Chain, err = a.readCertificates(cert); err != nil {
				return err
			}
			d, err := proxy.Diagnose(proxy.Config{Settings: s, Now: a.now}, q)
			if errors.Is(err, proxy.ErrQuestion) {
				return &statusError{exitUsage, err}
			}
			if err != nil {
				return err
			}
			if err := a.print(d, func(w *tabular) { diagnosisTable(w, d) }); err != nil {
				return err
			}
			if !d.Admitted {
				return deniedf("%s would refuse it: %s", d.Service, d.Reason)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the proxy's configuration `file`")
	cmd.Flags().StringVar(&cert, "cert", "", "`file` with the certificate and those that signed it, as a client presents them")
	cmd.Flags().StringVar(&q.Service, "service", "", "which `service`, where the configuration has several")
	cmd.Flags().StringVar(&q.Request, "request", "", "'GET /path', 'grpc pkg.Service/Method' or tcp")
	cmd.Flags().StringVar(&q.Source, "source", "", "`address` that the client comes from, for limits.sources")
	return cmd
}

func diagnosisTable(w *tabular, d proxy.Diagnosis) {
	w.row("STEP", "OUTCOME", "DETAIL")
	for _, s := range d.Steps {
		w.row(s.Name, s.Outcome, s.Detail)
	}
	w.flush()
	w.line("")
	if d.Admitted {
		w.line("%s would admit it", d.Service)
	} else {
		w.line("%s would refuse it: %s", d.Service, d.Reason)
	}
}
