"""The page: the same node in a browser of the same machine. It asks what the API asks, and renders it on the server."""
