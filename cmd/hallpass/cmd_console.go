package main

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/console"
)

func (a *app) newConsoleCommand() *cobra.Command {
	var listen string
	var noOpen bool
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Decide, look and revoke in a browser on this machine",
		Long: `Serve the web console to a browser on this machine, as you: the queue, each
request with what it would add and who is still needed, live grants, history,
the audit log, the policy and the cluster.

It listens on loopback alone, at 127.0.0.1 and ::1, and prints a link that works once, within five
minutes. Your key stays with this command: the browser gets a session that ends
when you sign out, after an hour without use, after nine hours, or with Ctrl-C.

The link has a name of its own under localhost, which Chromium and Firefox take
to this machine. Through ssh, forward the same port: ssh -L 8080:127.0.0.1:8080
and --listen 127.0.0.1:8080.`,
		Example: `  hallpass console
  hallpass console --listen 127.0.0.1:8080 --no-open`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			port, err := consolePort(listen)
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.console(ctx, c, port, !noOpen)
			})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "loopback `HOST:PORT` to listen on, at 127.0.0.1 and ::1; port 0 picks a free one")
	cmd.Flags().BoolVar(&noOpen, "no-open", false, "only print the link, open no browser")
	return cmd
}

// consolePort reads --listen. Browsers take *.localhost to these two addresses of
// loopback and to no other: on 127.0.0.2 the console would never be called, and
// whoever has the port on 127.0.0.1 be sent the link's token.
func consolePort(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || host != "127.0.0.1" && host != "::1" && host != "localhost" {
		return "", usagef("--listen %q: want a loopback HOST:PORT, 127.0.0.1:8080 or 127.0.0.1:0: whoever else reached it could try to act as you", listen)
	}
	return port, nil
}

// listenLoopback listens on a port of both 127.0.0.1 and ::1, or of the one that
// this machine has. Browsers try both, in an order of their own: another user who
// listened at this port of the other would be sent the link's token, or later the
// session's cookie, and could act as the person.
func listenLoopback(ctx context.Context, port string) (all []net.Listener, at int, err error) {
	const tries = 16 // of ports that the system picks, and somebody has at the other address
	for range tries {
		all, at, err = listenBoth(ctx, port)
		if err == nil || port != "0" || !errors.Is(err, syscall.EADDRINUSE) {
			return all, at, err
		}
	}
	return nil, 0, err
}

func listenBoth(ctx context.Context, port string) (all []net.Listener, at int, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close() // nothing was served there
			}
		}
	}()
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, port))
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // this machine has no such address, so nobody listens there
		}
		if err != nil {
			return all, 0, fmt.Errorf("console: browsers would call 127.0.0.1 and ::1, so both are needed: %w", err)
		}
		all = append(all, l)
		tcp, ok := l.Addr().(*net.TCPAddr)
		if !ok || !tcp.IP.IsLoopback() {
			return all, 0, fmt.Errorf("console: %s is not loopback", l.Addr())
		}
		at, port = tcp.Port, strconv.Itoa(tcp.Port)
	}
	if len(all) == 0 {
		return nil, 0, errors.New("console: this machine has no loopback address")
	}
	return all, at, nil
}

// consoleLink is what `hallpass console` prints.
type consoleLink struct {
	URL   string    `json:"url"`
	Until time.Time `json:"until"`
}

// console serves until the session is over or ctx ends.
func (a *app) console(ctx context.Context, c *api.Client, port string, open bool) error {
	me, err := c.WhoAmI(ctx)
	if err != nil {
		return err
	}
	listeners, at, err := listenLoopback(ctx, port)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // Serve closes it first
		}
	}()
	sessions := console.NewLocal(console.LocalConfig{API: c, Who: me.ID, SignedIn: func(agent string) {
		fmt.Fprintln(a.stderr, "signed in: a browser that calls itself", safeLine(agent))
	}, Again: func(link string, until time.Time, path string) {
		fmt.Fprintf(a.stderr, "The browser is to sign in again, for %s, and it works until %s:\n%s\nIf it was not you who asked for this, end the console with Ctrl-C.\n",
			safeLine(path), until.Format("15:04:05"), link)
	}})
	defer sessions.Close()
	host := console.LocalHost(at)
	pages, err := console.New(console.Config{ //nolint:contextcheck // each page has that of its call
		Sessions: sessions, Host: host, Zone: time.Local, Logger: slog.New(slog.NewTextHandler(a.stderr, nil)),
	})
	if err != nil {
		return err
	}
	printed := consoleLink{URL: sessions.Link(host), Until: sessions.LinkEnds().UTC()}
	if err := a.print(printed, func(w *tabular) { w.line("%s", printed.URL) }); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "The link works once, until %s. Ctrl-C ends the console.\n", sessions.LinkEnds().Format("15:04:05"))
	if open {
		defer a.openBrowser(ctx, printed.URL)()
	}
	switch err := serveConsole(ctx, pages.Server(), listeners, sessions); {
	case errors.Is(err, console.ErrLinkUnused):
		return pendingf("%w: run hallpass console again", err)
	case errors.Is(err, console.ErrSignedOut), errors.Is(err, console.ErrSessionOver):
		fmt.Fprintln(a.stderr, "the console has ended:", err)
		return nil
	default:
		return err
	}
}

// lastPage is for how long a console whose session is over still says so.
const lastPage = time.Second

// serveConsole returns once the console is over and nothing of it runs. The error
// says why, nil when ctx ended.
func serveConsole(ctx context.Context, server *http.Server, listeners []net.Listener, sessions *console.Local) error {
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- server.Serve(l) }()
	}
	var err error
	ended := 0 // of the listeners
	select {
	case err = <-served:
		ended++
	case <-ctx.Done():
	case <-sessions.Over():
		err = sessions.Err()
		// The browser is on its way to the page that says so.
		select {
		case <-time.After(lastPage):
		case <-ctx.Done():
		}
	}
	sessions.Close()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(ending) != nil {
		_ = server.Close() // whoever still reads has had its time
	}
	for range len(listeners) - ended {
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = failed
		}
	}
	return err
}

// openBrowser opens the link in a browser, where there is a screen, and returns
// what to do at the end. It is given a file that leads there, which nobody else can
// read: the arguments of a program are for everyone on this machine to see, and
// whoever saw the link there could use it first.
func (a *app) openBrowser(ctx context.Context, link string) (done func()) {
	program := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		program = "open"
	case a.env("DISPLAY") == "" && a.env("WAYLAND_DISPLAY") == "":
		return func() {}
	}
	dir, err := os.MkdirTemp(a.env("XDG_RUNTIME_DIR"), "hallpass-console-")
	if err != nil {
		fmt.Fprintln(a.stderr, "no browser is opened:", safeLine(err.Error()))
		return func() {}
	}
	done = func() { _ = os.RemoveAll(dir) } // a spent link is no secret
	file := filepath.Join(dir, "open.html")
	// In a session of its own: the Ctrl-C that ends this command must not end a browser.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(writeLeadPage(file, link), cmd.Start()); err != nil {
		fmt.Fprintln(a.stderr, "no browser is opened:", safeLine(err.Error()))
		return done
	}
	go func() { _ = cmd.Wait() }() // until the browser ends, or this process
	return done
}

func writeLeadPage(file, link string) error {
	page, err := template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>Hallpass</title>
<meta http-equiv="refresh" content="0; url={{.}}"><p><a href="{{.}}">Go on to the console</a></p></html>
`)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(page.Execute(f, link), f.Close())
}
