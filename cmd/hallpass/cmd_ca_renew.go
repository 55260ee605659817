package main

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/hallpass/hallpass/ca"
)

// renewedNode is one line of the answer of `ca sign-node --renew`.
type renewedNode struct {
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint"` // of its request
	File        string    `json:"file"`
	NotAfter    time.Time `json:"not_after"`
}

func (a *app) renewNodes(dir string, requests []ca.NodeRequest, prints map[string]string, o ca.SignOptions) error {
	renewed, err := ca.RenewNodes(dir, requests, o)
	if err != nil {
		return err
	}
	out := make([]renewedNode, 0, len(renewed))
	files := make([]string, 0, len(renewed))
	for _, c := range renewed {
		file := filepath.Join(dir, ca.RenewedDir, c.Node+".json")
		out = append(out, renewedNode{ID: c.Node, Fingerprint: prints[c.Node], File: file, NotAfter: c.NotAfter()})
		files = append(files, file)
	}
	err = a.print(out, func(w *tabular) {
		w.row("NODE", "FILE", "UNTIL", "REQUEST")
		for _, n := range out {
			w.row(n.ID, n.File, w.when(n.NotAfter), n.Fingerprint)
		}
	})
	a.next("to the cluster: hallpass issuer install %s", strings.Join(files, " "))
	return err
}
