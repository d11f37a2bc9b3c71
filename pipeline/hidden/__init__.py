"""The teacher's final hidden states and its head: the whole of what it says, for training without it."""
