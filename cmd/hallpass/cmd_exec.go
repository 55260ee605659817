package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/telemetry"
)

// execFlags are the flags of `exec`.
type execFlags struct {
	services []string
	grants   []string
	sockets  bool
	giveBack bool
	onDemand bool
	hold     time.Duration
	wait     time.Duration
	ask      requestFlags
}

func (a *app) newExecCommand() *cobra.Command {
	var f execFlags
	var p processSettings
	cmd := &cobra.Command{
		Use:   "exec --service NAME=[PROTOCOL:]HOST:PORT [flags] -- COMMAND [ARG…]",
		Short: "Run a command with access to services, and nothing of it left behind",
		Long: `Run a command that reaches services with your grants. For each service there is a
listener while the command runs, and the command is told in its environment:

  HALLPASS_PAYMENTS_URL     http://127.0.0.1:PORT, of a service of http
  HALLPASS_PAYMENTS_ADDR    127.0.0.1:PORT, of http and tcp
  HALLPASS_PAYMENTS_SOCKET  a Unix socket that you alone may use, of every service
  PGHOST, PGPORT, PGSSLMODE of the one service of postgres, by its socket

PROTOCOL is http, unless tcp or postgres is given. On loopback every user of this
machine reaches the ports: with --sockets there are sockets only.

With --allow access is asked for first, for one service, and the grant is
returned when the command ends; so are grants that were asked for on demand. A
grant that was there before stays, unless --return gives those of --grant back.
Keys never leave this process. Signals go to the command, and its status is ours
(128 and the signal's number if one ended it).`,
		Example: `  hallpass exec --service payments=payments.acme.test:9443 -- ./report.sh
  hallpass exec --service orders-db=postgres:db.acme.test:9543 \
    --allow 'postgres orders as readonly' --for 30m --reason 'ticket 4711' -- psql -d orders -U readonly`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return usagef("no command given: write it behind --")
			}
			all, err := f.carried()
			if err != nil {
				return err
			}
			if err := a.override(cmd, &p); err != nil {
				return err
			}
			return a.exec(cmd.Context(), f, all, args, p)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.services, "service", nil, "a service and its proxy, `NAME=[PROTOCOL:]HOST:PORT`; repeat for more")
	flags.StringArrayVar(&f.grants, "grant", nil, "`ID` of a grant to use (default: every live one); repeat for more")
	flags.BoolVar(&f.sockets, "sockets", false, "listen on Unix sockets only")
	flags.BoolVar(&f.giveBack, "return", false, "return the grants of --grant when the command ends")
	flags.StringArrayVar(&f.ask.allow, "allow", nil, "`permission` to ask for first; repeat for more")
	flags.DurationVar(&f.ask.length, "for", 15*time.Minute, "how long, for --allow and --on-demand")
	flags.StringVar(&f.ask.reason, "reason", "", "why, for --allow and --on-demand")
	flags.DurationVar(&f.wait, "wait", 24*time.Hour, "how long to wait for the decision on --allow")
	flags.BoolVar(&f.onDemand, "on-demand", false, "ask for what no grant allows when it is called for, and hold the call")
	flags.DurationVar(&f.hold, "hold", 0, "how long a call is held by --on-demand (default 2m)")
	addSettings(cmd, &p)
	return cmd
}

// carried reads the services off the flags.
func (f execFlags) carried() ([]carried, error) {
	switch {
	case len(f.services) == 0:
		return nil, usagef("no service given: --service NAME=HOST:PORT")
	case len(f.ask.allow) > 0 && len(f.services) != 1:
		return nil, usagef("--allow asks for one service, and %d are given", len(f.services))
	case len(f.ask.allow) > 0 && len(f.grants) > 0:
		return nil, usagef("--allow asks for a grant and --grant names one: give either")
	case f.giveBack && len(f.grants) == 0:
		return nil, usagef("--return gives back the grants of --grant, and none is given")
	case (len(f.ask.allow) > 0 || f.onDemand) && strings.TrimSpace(f.ask.reason) == "":
		return nil, usagef("no reason given: --reason 'why you need it'")
	}
	var all []carried
	seen := make(map[string]bool)
	for _, text := range f.services {
		name, rest, ok := strings.Cut(text, "=")
		v := agentService{Name: name, Via: rest, Protocol: protocolHTTP, Grants: f.grants}
		for _, p := range []string{protocolHTTP, protocolTCP, protocolPostgres} {
			if via, found := strings.CutPrefix(rest, p+":"); found && strings.Contains(via, ":") {
				v.Protocol, v.Via = p, via
			}
		}
		if !ok || len(v.mistakes()) > 0 {
			return nil, usagef("--service %s: want NAME=HOST:PORT, or NAME=tcp:HOST:PORT", text)
		}
		if seen[name] {
			return nil, usagef("--service %s: given twice", name)
		}
		seen[name] = true
		c := carried{service: v.Name, via: v.Via, protocol: v.Protocol, grants: v.Grants}
		if f.onDemand {
			c.ask = &askSettings{Reason: f.ask.reason, Duration: f.ask.length, Hold: f.hold}
			if len(f.ask.allow) == 1 && v.Protocol != protocolHTTP {
				c.ask.Permission = f.ask.allow[0]
			}
			if err := c.ask.check(v.Protocol); err != nil {
				return nil, usagef("--on-demand: %w", err)
			}
		}
		all = append(all, c)
	}
	return all, nil
}

func (a *app) exec(ctx context.Context, f execFlags, all []carried, command []string, p processSettings) (err error) {
	tel, err := a.telemetry(ctx, "hallpass-exec", "exec", p)
	if err != nil {
		return err
	}
	// The signal that ends the others is the command's here, and its end is ours.
	stays := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, tel.Shutdown(stays)) }()
	return a.callAs(stays, tel.TracerProvider, func(stays context.Context, c *api.Client) error {
		var back []string
		if f.giveBack {
			back = f.grants
		}
		if len(f.ask.allow) > 0 {
			id, err := a.askFirst(ctx, c, f, all[0].service)
			if err != nil {
				return err
			}
			all[0].grants, back = []string{id}, []string{id}
		}
		asked, err := a.runCommand(stays, c, tel, f, all, command)
		ending, cancel := context.WithTimeout(stays, 10*time.Second)
		defer cancel()
		if lost := returnGrants(ending, c, append(back, asked...)); lost != nil {
			a.complain(lost) // the command's status is what counts; the grants end by themselves
		}
		return err
	})
}

// askFirst asks for access and waits for it. Whoever interrupts that withdraws the request.
func (a *app) askFirst(ctx context.Context, c *api.Client, f execFlags, service string) (string, error) {
	in, err := f.ask.input(service)
	if err != nil {
		return "", err
	}
	r, err := c.CreateRequest(ctx, in)
	if err != nil {
		return "", err
	}
	if r.State == api.RequestPending {
		fmt.Fprintln(a.stderr, safeLine(fmt.Sprintf("request %s waits for %s", r.ID, waitsFor(r, " and "))))
		waiting, cancel := context.WithTimeout(ctx, f.wait)
		defer cancel()
		if last, err := c.WaitRequest(waiting, r.ID); err == nil {
			r = last
		} else if waiting.Err() == nil {
			return "", err
		}
	}
	switch r.State {
	case api.RequestApproved:
		return r.ID, nil
	case api.RequestPending:
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, err := c.CancelRequest(ending, r.ID)
		return "", errors.Join(pendingf("request %s was not decided in time, and is withdrawn", r.ID), err)
	default:
		return "", deniedf("request %s is %s", r.ID, r.State)
	}
}

// runCommand runs the command with its listeners, and returns what it asked for on demand.
func (a *app) runCommand(ctx context.Context, c *api.Client, tel *telemetry.Telemetry, f execFlags, all []carried, command []string) ([]string, error) {
	dir, err := os.MkdirTemp("", "hallpass-") // of mode 0700: the sockets in it are this user's
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // the sockets are gone with their listeners
	k, err := a.newCarrier(ctx, c, tel)
	if err != nil {
		return nil, err
	}
	defer k.close()
	environ, err := k.environment(all, dir, f.sockets)
	if err != nil {
		return nil, err
	}
	child := exec.CommandContext(ctx, command[0], command[1:]...) // ctx has no end: the command's is its own
	child.Env = append(a.environ(), environ...)
	child.Stdin, child.Stdout, child.Stderr = a.stdin, a.stdout, a.stderr
	err = runForwarding(child, isTerminal(a.stdin))
	k.close()
	return k.asked(), err
}

// environment listens for each service, and says where.
func (k *carrier) environment(all []carried, dir string, socketsOnly bool) ([]string, error) {
	var environ []string
	databases := 0
	for i, s := range all {
		name := "HALLPASS_" + strings.ToUpper(strings.ReplaceAll(s.service, "-", "_"))
		socket := filepath.Join(dir, s.service+".sock")
		if s.protocol == protocolPostgres {
			// Clients of PostgreSQL take a folder for the host, and know the name in it.
			folder := filepath.Join(dir, fmt.Sprintf("pg%d", i))
			if err := os.Mkdir(folder, 0o700); err != nil {
				return nil, err
			}
			socket = filepath.Join(folder, ".s.PGSQL.5432")
			if databases++; databases == 1 {
				environ = append(environ, "PGHOST="+folder, "PGPORT=5432", "PGSSLMODE=disable")
			}
		}
		s.listen = []string{"unix:" + socket}
		if !socketsOnly && s.protocol != protocolPostgres {
			s.listen = append(s.listen, "127.0.0.1:0")
		}
		at, err := k.serve(s)
		if err != nil {
			return nil, err
		}
		environ = append(environ, name+"_SOCKET="+socket)
		if len(at) > 1 {
			environ = append(environ, name+"_ADDR="+at[1])
			if s.protocol == protocolHTTP {
				environ = append(environ, name+"_URL=http://"+at[1])
			}
		}
	}
	if databases > 1 {
		return nil, usagef("PGHOST names one database, and %d services speak postgres", databases)
	}
	return environ, nil
}

// runForwarding runs a command, hands it the signals that come here, and returns its status.
func runForwarding(child *exec.Cmd, terminal bool) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	child.WaitDelay = 5 * time.Second // for whoever the command left behind with its output
	if err := child.Start(); err != nil {
		return startStatus(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal sends these to the command as well, and two would be one too many.
			if terminal && (s == syscall.SIGINT || s == syscall.SIGQUIT) {
				continue
			}
			_ = child.Process.Signal(s) // it may have ended just now
		case err := <-ended:
			return childStatus(err)
		}
	}
}

// startStatus is the status of a command that cannot be run, as shells have it.
func startStatus(err error) error {
	status := 126
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		status = 127
	}
	return &statusError{status, err}
}

// childStatus is the status of a command that has ended.
func childStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return &statusError{status: 128 + int(ws.Signal())}
	}
	return &statusError{status: exit.ExitCode()}
}
