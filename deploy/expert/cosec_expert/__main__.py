"""`python -m cosec_expert train ...`; README.md has the commands."""

from .commands import main

if __name__ == "__main__":
    main()
