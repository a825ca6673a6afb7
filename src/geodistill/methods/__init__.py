"""Ways to turn scenes into a distilled set."""
