"""The demo: a scattered legacy system under live writes, and the story that makes one verified tape of it."""
