"""Files of projects: bytes in a store of contents, and the table of objects that is the truth about them."""
