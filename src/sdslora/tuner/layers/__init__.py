"""The adapted layers: one mixin over whichever LoRA layer PEFT chose for a module."""
