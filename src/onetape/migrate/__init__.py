"""The migrator: data scattered over Redis databases onto one database and one tape, while writers go on."""
