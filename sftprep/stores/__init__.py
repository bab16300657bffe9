"""Edge below the edges: object stores. What names the bytes there, and reading and writing that is tried again."""
