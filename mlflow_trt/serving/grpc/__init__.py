"""gRPC: the same protocol, in the event loop of the HTTP server."""
