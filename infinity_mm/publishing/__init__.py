"""Data sets and models to the Hugging Face Hub: whole or not at all, and the same command again goes on."""
