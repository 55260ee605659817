package demo

import (
	"context"
	"fmt"
	"strings"
)

// Dev starts everything, prints what to type next and leaves it running until
// ctx ends.
func Dev(ctx context.Context, o Options) error {
	s, err := NewStage(o)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Start(ctx); err != nil {
		return err
	}
	fmt.Fprint(s.out, s.next())
	<-ctx.Done()
	fmt.Fprintln(s.out, "stopping")
	return nil
}

// next is what a newcomer may type.
func (s *Stage) next() string {
	return fmt.Sprintf(strings.TrimLeft(`
Running: %[1]s and a proxy for payments on https://%[2]s.
The people are alice (asks), bob, carol and dana (admins; bob owns payments too).
In another terminal:

  export HALLPASS_SERVER=%[3]s
  cd %[4]s/people

  # refused, and told what to ask for
  curl --cacert alice/identity-bundle.pem --cert alice/cert.pem --key alice/key.pem https://%[2]s/accounts/42

  # ask, approve, fetch the certificate, use it
  hallpass --identity alice request create payments --allow 'GET /accounts/**' --for 30m --reason 'ticket 4711'
  hallpass --identity bob review list
  hallpass --identity bob review approve ID
  hallpass --identity alice grant cert ID --out alice-grant
  curl --cacert alice/identity-bundle.pem --cert alice-grant/cert.pem --key alice-grant/key.pem https://%[2]s/accounts/42

Ctrl-C stops it and removes everything.
`, "\n"), "three control nodes", s.place.proxy, strings.Join(s.Servers(), ","), s.dir)
}
