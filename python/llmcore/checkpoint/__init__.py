"""Untrusted files on disk become named tensors, a typed config and errors that say what is wrong and where."""
