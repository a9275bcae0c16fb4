"""Functions of a project: deploy from source, versions, settings, secrets, artifacts."""
