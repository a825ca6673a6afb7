"""The commands, composed of stages, methods, evaluation and audit."""
