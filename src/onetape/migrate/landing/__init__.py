"""Landing: ticks and bars of Redis keys merged into streams and put on the tape, each once."""
