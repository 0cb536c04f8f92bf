"""The witness: recounts a log and checks certificates and anchors without the engine. Shares no code with its fold."""
