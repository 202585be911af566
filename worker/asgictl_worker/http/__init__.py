"""HTTP/1.1: parsers, requests, responses, the writer, and the cycle that serves them all."""
