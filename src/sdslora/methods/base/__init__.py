"""The base of all methods: their interface, their settings, and access to layers and weights."""
