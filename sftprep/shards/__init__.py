"""Edge: the packed data set on disk: schema, manifest, writer, reader."""
