package main

import (
	"errors"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/control"
)

// limits are what callers may hold of a node.
type limits struct {
	Header  span `yaml:"header" doc:"time to shake hands and send a request's header (default 5s)"`
	Idle    span `yaml:"idle" doc:"time that a connection may be idle (default 2m)"`
	Propose span `yaml:"propose" doc:"time for a write to commit (default 5s)"`

	Connections          count `yaml:"connections" doc:"connections to the API (default 8192)"`
	Handshakes           count `yaml:"handshakes" doc:"connections on which no request has come yet (default 1024)"`
	HandshakesPerAddress count `yaml:"handshakes_per_address" doc:"the same, of one IPv4 address or IPv6 /64 (default 256)"`
	ConnectionsPerCaller count `yaml:"connections_per_caller" doc:"connections of one SPIFFE ID (default 1024)"`
	CallsPerCaller       count `yaml:"calls_per_caller" doc:"calls of one SPIFFE ID under way, streams among them (default 2048)"`
	ReadsPerSecond       count `yaml:"reads_per_second" doc:"reads of one person or SPIFFE ID (default 200)"`
	WritesPerSecond      count `yaml:"writes_per_second" doc:"writes of one person or SPIFFE ID, as many decisions, and as many reports of proxies (default 50)"`
	WritesPerCaller      count `yaml:"writes_per_caller" doc:"writes of one person or SPIFFE ID under way (default 64)"`
	Writes               count `yaml:"writes" doc:"writes of all callers under way, and as many decisions (default 1024)"`
}

func (l limits) control() control.Limits {
	return control.Limits{
		Header: time.Duration(l.Header), Idle: time.Duration(l.Idle), Propose: time.Duration(l.Propose),
		Connections: int(l.Connections), Handshakes: int(l.Handshakes), HandshakesPerAddress: int(l.HandshakesPerAddress),
		ConnectionsPerCaller: int(l.ConnectionsPerCaller), CallsPerCaller: int(l.CallsPerCaller),
		ReadsPerSecond: int(l.ReadsPerSecond), WritesPerSecond: int(l.WritesPerSecond),
		WritesPerCaller: int(l.WritesPerCaller), Writes: int(l.Writes),
	}
}

// count is a number of things. Zero means the default and cannot be
// written: it would read as "none" to one and as "no limit" to another.
type count int

var errCount = errors.New("a whole number from 1 to 1000000")

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *count) UnmarshalText(text []byte) error {
	v, err := strconv.Atoi(string(text))
	if err != nil || v < 1 || v > 1e6 {
		return errCount
	}
	*n = count(v)
	return nil
}

// String is what UnmarshalText reads.
func (n count) String() string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

// span is a time to wait. Zero means the default.
type span time.Duration

var errSpan = errors.New("a duration from 1s to 1h")

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *span) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < time.Second || v > time.Hour {
		return errSpan
	}
	*d = span(v)
	return nil
}

// String is what UnmarshalText reads.
func (d span) String() string {
	if d == 0 {
		return ""
	}
	return time.Duration(d).String()
}
