"""Functions of a project: deploy from source, versions, artifacts, and running them by slug."""
