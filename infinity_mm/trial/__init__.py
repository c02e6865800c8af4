"""`infinity-mm try` and `infinity-mm init`: the tool on a person's own pictures, before anything is read or written."""
