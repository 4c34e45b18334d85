"""Programs of others, run by their own commands in environments of their own; nothing of theirs is imported."""
