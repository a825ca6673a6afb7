"""The stages of a run, one file each. A method is a sequence of stages."""
