"""Keys: what one holds, in whatever form a server tells of it: the dump, the content, the state of a stream."""
