package raftstore

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// splitStreams carries several kinds of stream over a simulation's one: the first byte of each says which it is.
type splitStreams struct {
	under   Streams
	queues  map[streamKind]*streamQueue
	running sync.WaitGroup
}

func newSplitStreams(under Streams, id string) *splitStreams {
	s := &splitStreams{under: under, queues: map[streamKind]*streamQueue{
		streamApp: newStreamQueue(id), streamRecords: newStreamQueue(id),
	}}
	s.running.Go(s.accept)
	return s
}

// accept ends when close has closed what is under it.
func (s *splitStreams) accept() {
	for {
		conn, err := s.under.Accept()
		if err != nil {
			return
		}
		s.running.Go(func() {
			if err := s.admit(conn); err != nil {
				_ = conn.Close() // it was no stream of ours
			}
		})
	}
}

func (s *splitStreams) admit(conn net.Conn) error {
	var kind [1]byte
	if err := conn.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, kind[:]); err != nil {
		return err
	}
	queue := s.queues[streamKind(kind[0])]
	if queue == nil {
		return errors.New("no such kind of stream")
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	select {
	case queue.streams <- conn:
		return nil
	case <-queue.done:
		return net.ErrClosed
	}
}

func (s *splitStreams) dial(ctx context.Context, id string, kind streamKind) (net.Conn, error) {
	conn, err := s.under.Dial(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{byte(kind)}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (s *splitStreams) close() error {
	for _, q := range s.queues {
		_ = q.Close()
	}
	err := s.under.Close()
	s.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}
