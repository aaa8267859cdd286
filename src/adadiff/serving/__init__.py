"""A model as a service: the engine that runs requests together, the HTTP API, and a page to try it on."""
