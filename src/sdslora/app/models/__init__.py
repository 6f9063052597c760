"""Base models and adapters: what is checked, loaded and saved."""
