"""Treatment rooms: the schema of a site file, its loader, and the shipped sites and example plans."""
