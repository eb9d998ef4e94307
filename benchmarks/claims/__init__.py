"""The claims of the paper, measured again on small real data; see docs/claims.md."""
