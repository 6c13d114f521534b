"""One file per kind of source: each lists the files that a reference means, without fetching weights."""
