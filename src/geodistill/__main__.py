"""`python -m geodistill`, and so `torchrun -m geodistill`."""

from geodistill.cli import app

if __name__ == "__main__":
    app(prog_name="geodistill")
