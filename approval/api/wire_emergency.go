package api

import "time"

// EmergencyIssuerInput is the body of POST /v1/emergency/issuers.
type EmergencyIssuerInput struct {
	Issuer string `json:"issuer" minLength:"1" maxLength:"8192" doc:"PEM: the issuer.crt of a kit"`
}

// EmergencyRecordInput is the body of POST /v1/emergency/records.
type EmergencyRecordInput struct {
	Record string `json:"record" minLength:"1" maxLength:"16384" doc:"one line of the kit's journal"`
	Of     uint64 `json:"of" minimum:"1" doc:"records in the journal that it is from: fewer than were imported before are refused"`
}

// EmergencyJournal is what was imported of an emergency issuer's journal.
type EmergencyJournal struct {
	Issuer string `json:"issuer" doc:"hex SHA-256 of its certificate"`
	Count  uint64 `json:"count" doc:"records imported"`
	Head   string `json:"head" doc:"hash of the last one"`
	Forked uint64 `json:"forked,omitempty" doc:"place of a record of another history that somebody brought: deny the issuer"`
	New    bool   `json:"new" doc:"this call imported the record; false: it had been"`
}

// EmergencyIssuer is an emergency issuer, and what was imported of it.
type EmergencyIssuer struct {
	Issuer
	Imported uint64 `json:"imported" doc:"records"`
	Head     string `json:"head,omitempty" doc:"hash of the last one"`
	Forked   uint64 `json:"forked,omitempty" doc:"place of a record of another history that somebody brought: deny the issuer"`
}

// Emergencies lists the emergency issuers that the cluster knows.
type Emergencies struct {
	Issuers []EmergencyIssuer `json:"issuers"`
}

// EmergencyRevocation ends an emergency grant that was not imported.
type EmergencyRevocation struct {
	Grant  string    `json:"grant"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until" doc:"when no certificate of it can live any more"`
}

// EmergencyOrigin says of a grant that custodians made it while there was no
// cluster: nobody decided on it here.
type EmergencyOrigin struct {
	Issuer     string    `json:"issuer" doc:"hex SHA-256 of the emergency issuer's certificate"`
	N          uint64    `json:"n" doc:"place of its record in the issuer's journal"`
	Custodians []string  `json:"custodians" doc:"who acted together"`
	Reason     string    `json:"reason" doc:"in their words"`
	ImportedBy string    `json:"imported_by"`
	ImportedAt time.Time `json:"imported_at"`
}
