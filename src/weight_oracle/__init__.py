"""Weight oracle: reads a network's weights and says, in words, what the network does."""
