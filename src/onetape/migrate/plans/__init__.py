"""Plans: which key goes where. Patterns of names, the rules made of them, and the plan that ships."""
