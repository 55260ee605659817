package raftstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// The first bytes on a connection say what it carries and under which settings; the answer says whether it was let in, and
// if not, why. A TLS 1.3 client has finished its handshake before the server has looked at its certificate: only the
// answer tells it that it was let in. All integers are big-endian:
//
//	question: kind 1 | cluster 32 | lineage 16 | heartbeat 8 | election 8 | lease 8 (ns)
//	answer:   kind, or 0 for no | standing 1 | lineage 16 | founding 32 | length 2 | reason, in words
const (
	prefaceSize = 1 + sha256.Size + lineageSize + 3*8
	replySize   = 1 + 1 + lineageSize + sha256.Size + 2
	maxReason   = 512
	refusedKind = streamKind(0)
)

type streamKind byte

const (
	streamRaft    streamKind = 'r'
	streamApp     streamKind = 'a'
	streamRecords streamKind = 's'
	streamHello   streamKind = 'h' // nothing but the question and the answer
)

var errSettings = errors.New("raftstore: the peer runs with other settings")

// lineage names the history that a log belongs to. Nodes of one cluster share it until the cluster is restored from a
// snapshot or recovered without its quorum: what happened since in another line was not, and a log entry of it must not
// be taken for the one of the same index and term in this line. The zero lineage is that of a node without a log.
type lineage [lineageSize]byte

const lineageSize = 16

func (l lineage) String() string { return fmt.Sprintf("%x", l[:4]) }

// preface is the question.
type preface struct {
	kind    streamKind
	cluster [sha256.Size]byte
	lineage lineage
	timing  Timing // Heartbeat, Election and Lease
}

func (p preface) encode() []byte {
	b := append([]byte{byte(p.kind)}, p.cluster[:]...)
	b = append(b, p.lineage[:]...)
	for _, d := range []time.Duration{p.timing.Heartbeat, p.timing.Election, p.timing.Lease} {
		b = binary.BigEndian.AppendUint64(b, uint64(d))
	}
	return b
}

func decodePreface(b []byte) preface {
	p := preface{kind: streamKind(b[0])}
	b = b[1:]
	b = b[copy(p.cluster[:], b):]
	b = b[copy(p.lineage[:], b):]
	for i, d := range []*time.Duration{&p.timing.Heartbeat, &p.timing.Election, &p.timing.Lease} {
		*d = time.Duration(binary.BigEndian.Uint64(b[8*i:]))
	}
	return p
}

// refuses says what keeps this node and the one that asks apart: a node with other time-outs would vote by other rules,
// and one of another cluster or history would be sent entries that mean something else to it.
func (p preface) refuses(theirs preface) error {
	switch {
	case theirs.kind != streamRaft && theirs.kind != streamApp && theirs.kind != streamRecords && theirs.kind != streamHello:
		return fmt.Errorf("raftstore: unknown stream kind %#x", byte(theirs.kind))
	case theirs.cluster != p.cluster:
		return fmt.Errorf("%w: it is of another cluster", errSettings)
	case theirs.lineage != p.lineage && theirs.lineage != lineage{} && p.lineage != lineage{}:
		return fmt.Errorf("%w: its data are of another epoch of this cluster (%s, here %s)", errSettings, theirs.lineage, p.lineage)
	}
	for _, s := range []struct {
		name         string
		theirs, here time.Duration
	}{
		{"heartbeat", theirs.timing.Heartbeat, p.timing.Heartbeat},
		{"election", theirs.timing.Election, p.timing.Election},
		{"lease", theirs.timing.Lease, p.timing.Lease},
	} {
		if s.theirs != s.here {
			return fmt.Errorf("%w: its %s time-out is %v and here it is %v", errSettings, s.name, s.theirs, s.here)
		}
	}
	return nil
}

// reply is the answer.
type reply struct {
	kind     streamKind // refusedKind: not let in
	standing standing
	lineage  lineage
	founding [sha256.Size]byte
	reason   string
}

func (a reply) encode() []byte {
	if len(a.reason) > maxReason {
		a.reason = a.reason[:maxReason]
	}
	b := append([]byte{byte(a.kind), byte(a.standing)}, a.lineage[:]...)
	b = append(b, a.founding[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.reason)))
	return append(b, a.reason...)
}

func readReply(r io.Reader) (reply, error) {
	b := make([]byte, replySize)
	if _, err := io.ReadFull(r, b); err != nil {
		return reply{}, fmt.Errorf("not let in, see the other node's log: %w", err)
	}
	a := reply{kind: streamKind(b[0]), standing: standing(b[1])}
	copy(a.lineage[:], b[2:])
	copy(a.founding[:], b[2+lineageSize:])
	n := binary.BigEndian.Uint16(b[replySize-2:])
	if n > maxReason {
		return reply{}, errors.New("its answer is too long")
	}
	reason := make([]byte, n)
	if _, err := io.ReadFull(r, reason); err != nil {
		return reply{}, fmt.Errorf("read its answer: %w", err)
	}
	a.reason = string(bytes.ToValidUTF8(reason, []byte("?")))
	return a, nil
}

// clusterHash keeps nodes of two clusters apart that were given each other's keys.
func clusterHash(name string) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("hallpass raftstore v1\x00"), name...))
}
