"""Objectives beside supervised fine-tuning, each with its rows and its trainer of TRL."""
