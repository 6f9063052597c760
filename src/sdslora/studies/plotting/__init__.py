"""The parts that all plots and tables share: colours, layer names, Markdown."""
