"""What the commands do: compositions of stages, methods, evaluation and audit."""
