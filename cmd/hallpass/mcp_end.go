package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// The bounds of a session's end. The client is gone by then, and whatever it left hanging must
// not keep what people granted alive.
const (
	mcpEndLimit    = 30 * time.Second // for all that is given back
	mcpEndAtATime  = 8
	mcpUnreadLimit = 3 * time.Second // for the last answers, when what was granted has been given back
)

// mcpSignals returns a context that ends with SIGHUP as well. A client that crashes or whose
// terminal is closed leaves a hangup and broken pipes behind, and either would end this process
// before it gave anything back: that of stdout at the next answer, that of stderr at the next
// line of the log. A second hangup changes nothing, since a shell and its terminal send one each.
func mcpSignals(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGPIPE)
	if signal.Ignored(syscall.SIGHUP) { // as under nohup
		return ctx, func() {}
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// serve speaks the protocol until the client closes stdin, cannot be written to any more or ctx
// ends, and gives back what the session leaves. It returns what could not be given back, and why
// the session ended if that was a mistake. It waits for neither calls nor answers that hang: a
// client that has stopped reading would keep its grants for as long as it hangs.
func (m *mcpServer) serve(ctx context.Context, stdin io.Reader, stdout io.Writer) (lost, err error) {
	session, stop := context.WithCancel(ctx)
	defer stop()
	m.ctx = session
	ran := make(chan error, 1)
	go func() { // ends with the session, or with the process when stdout blocks
		defer stop()
		ran <- m.server().Run(session, &mcp.IOTransport{
			Reader: endingReader{stdin, stop}, Writer: openWriter{stdout}, MaxLineLength: mcpMaxMessage,
		})
	}()
	<-session.Done()
	lost = m.giveBack(ctx)
	select {
	case err = <-ran:
	case <-time.After(mcpUnreadLimit):
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return lost, err
}

// giveBack ends what is left of a session, also when ctx has ended. A request that is on its way
// is waited for, since it is ended by who makes it.
func (m *mcpServer) giveBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mcpEndLimit)
	defer cancel()
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	left := m.open(nil)
	errs := make([]error, len(left), len(left)+1)
	slots := make(chan struct{}, mcpEndAtATime)
	var ending sync.WaitGroup
	for i, r := range left {
		slots <- struct{}{}
		ending.Go(func() {
			defer func() { <-slots }()
			if _, err := m.end(ctx, r); err != nil {
				errs[i] = fmt.Errorf("request %s could not be ended: %w", r.id, err)
			}
		})
	}
	ending.Wait()
	made := make(chan struct{})
	go func() { // ends with the calls that make requests, which have an end
		m.making.Wait()
		close(made)
	}()
	select {
	case <-made:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("a request that was on its way may have been made: %w", ctx.Err()))
	}
	return errors.Join(errs...)
}

// endingReader ends the session with its input, whatever the agent waits for: there is nobody
// left to tell. It stays open for whoever gave it.
type endingReader struct {
	io.Reader
	end func()
}

func (r endingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.end()
	}
	return n, err
}

func (endingReader) Close() error { return nil }

// openWriter stays open for whoever gave it.
type openWriter struct{ io.Writer }

func (openWriter) Close() error { return nil }
