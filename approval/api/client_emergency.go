package api

import (
	"context"
	"net/url"
)

// Emergencies lists the emergency issuers that the cluster knows.
func (c *Client) Emergencies(ctx context.Context, opts ...CallOption) (out Emergencies, err error) {
	err = c.get(ctx, pathEmergency, nil, &out, opts)
	return out, err
}

// RegisterEmergencyIssuer makes an emergency issuer known; issuer is PEM.
func (c *Client) RegisterEmergencyIssuer(ctx context.Context, issuer string, opts ...CallOption) (out Issuer, err error) {
	err = c.post(ctx, pathEmergency+"/issuers", EmergencyIssuerInput{Issuer: issuer}, &out, opts)
	return out, err
}

// ImportEmergencyRecord brings one record of a journal that has so many. Records are
// brought in their order.
func (c *Client) ImportEmergencyRecord(ctx context.Context, record string, of uint64, opts ...CallOption) (out EmergencyJournal, err error) {
	err = c.post(ctx, pathEmergency+"/records", EmergencyRecordInput{Record: record, Of: of}, &out, opts)
	return out, err
}

// RevokeEmergencyGrant ends an emergency grant that was not imported.
func (c *Client) RevokeEmergencyGrant(ctx context.Context, id, reason string, opts ...CallOption) (out EmergencyRevocation, err error) {
	err = c.post(ctx, pathEmergency+"/grants/"+url.PathEscape(id)+"/revoke", ReasonInput{Reason: reason}, &out, opts)
	return out, err
}
