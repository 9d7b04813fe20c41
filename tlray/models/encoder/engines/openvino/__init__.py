"""OpenVINO as an engine: its import, its graphs."""
