"""Steps: the commands of a live migration, forward, back and undone, and what decides whether one is safe."""
