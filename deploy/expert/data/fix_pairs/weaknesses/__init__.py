"""One module for each weakness: its number and its templates."""
