"""Who may do what, and what strangers, other tenants and those with half a credential are told."""
