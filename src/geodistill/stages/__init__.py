"""The stages of a run, one file each: what methods are lines of."""
