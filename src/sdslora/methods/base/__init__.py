"""What the methods share: the interface, settings, and how layers and weights are reached."""
