"""Things tests build: tiny models, servers, guards."""
