"""WebSockets: the handshake, the frames and the one cycle that serves them."""
