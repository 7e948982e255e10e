"""The networks that are read: stacked training, Hugging Face import and export."""
