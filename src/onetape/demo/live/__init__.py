"""The live migration as a story: writers and readers go on while every phase is entered, left again, and entered."""
