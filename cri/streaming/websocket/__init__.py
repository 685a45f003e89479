"""The WebSocket carrier: frames, channels, and SPDY in a tunnel."""
