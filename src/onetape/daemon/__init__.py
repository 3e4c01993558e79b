"""The daemon: the tape, the sources, the services and the page as one process that is started, watched and ended."""
