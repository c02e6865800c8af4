"""Commands of `infinity-mm` that are too long for cli.py, one file each; cli.py registers them."""
