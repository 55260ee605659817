package main

import (
	"errors"
	"net"
	"testing"

	"github.com/hallpass/hallpass/proxy"
)

// TestWhoseSocket: an inherited socket goes by its name or its address; one that
// nothing is to listen on, or that opens to others what asks nobody, is refused.
func TestWhoseSocket(t *testing.T) {
	all := wantedByProxy(proxy.Settings{
		Admin: "127.0.0.1:9901", Listen: ":8443",
		Services: []proxy.ServiceSettings{{Service: "payments"}, {Service: "ledger", Listen: "10.0.0.7:8444"}, {Service: "orders", Listen: "localhost:8445"}},
	})
	tcp := func(address string) net.Addr {
		at, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	socket := &net.UnixAddr{Name: "/run/x.sock", Net: "unix"}
	for _, tt := range []struct {
		name string
		at   net.Addr
		want string // "": refused
	}{
		{"LISTEN_FD_3", tcp("[::]:8443"), "payments"},
		{"unknown", tcp("0.0.0.0:8443"), "payments"},
		{"unknown", tcp("127.0.0.1:8443"), ""},
		{"unknown", tcp("10.0.0.7:8444"), "ledger"},
		{"unknown", tcp("10.0.0.8:8444"), ""},
		{"unknown", tcp("[::1]:8445"), "orders"},
		{"ledger", tcp("10.0.0.8:1234"), "ledger"},
		{"ledger", socket, ""},
		{"admin", tcp("127.0.0.1:1"), "admin"},
		{"admin", tcp("0.0.0.0:9901"), ""},
		{"admin", socket, "admin"},
		{"unknown", socket, ""},
	} {
		w, err := whose(tt.name, tt.at, all)
		if tt.want == "" && !errors.Is(err, errInherited) || tt.want != "" && (err != nil || w.name != tt.want) {
			t.Errorf("%s on %s: %s, %v; want %q", tt.name, tt.at, w.name, err, tt.want)
		}
	}
	if !sameAddress("unix:///run/x.sock", socket) || !sameAddress("unix:/run/x.sock", socket) || sameAddress("unix:/run/y.sock", socket) {
		t.Error("Unix sockets are told apart by their paths")
	}
}
