package console

// policy shows the policy in force.
func (c *Console) policy(v visit) (view, error) {
	p, err := v.api.Policy(v.Context())
	return view{page: "policy", title: "Policy", body: p}, err
}

// cluster shows the control plane as one node sees it.
func (c *Console) cluster(v visit) (view, error) {
	cl, err := v.api.Cluster(v.Context())
	return view{page: "cluster", title: "Cluster", body: cl}, err
}
