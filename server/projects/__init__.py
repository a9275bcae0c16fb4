"""Projects, the unit of tenancy, and the API keys that speak for them."""

from server.projects.api_keys import ApiKey, Principal, Role
from server.projects.keyring import Keyring
from server.projects.projects import Project, Projects

__all__ = ["ApiKey", "Keyring", "Principal", "Project", "Projects", "Role"]
