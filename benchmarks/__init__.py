"""Every figure of the registry's speed, as a ratio to what does the same: `make bench`."""
