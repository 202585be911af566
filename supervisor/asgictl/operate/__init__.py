"""Shows: what people and machines ask of the supervisor."""
