"""Base models and adapters: checked, loaded and saved."""
