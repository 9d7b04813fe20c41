"""HTTP around the service: routes, access, limits, connections and the page's files."""
