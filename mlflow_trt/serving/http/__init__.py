"""HTTP: routes, bodies, and connections within limits."""
