"""Readers and writers of vocabularies: each turns one kind of file into a `VocabSpec`, which the core is built from."""
