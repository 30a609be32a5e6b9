"""`python -m pvae` is the command `pvae`."""

from pvae.cli.main import app

if __name__ == "__main__":
    app()
